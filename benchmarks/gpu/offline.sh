#!/usr/bin/env bash
# Wheels that the GPU check needs beside torch, Triton, transformers and accelerate, for a machine without a network. On a
# machine with a package index, from the repository's root; then copy the repository, with .whl, to the machine with the
# GPU and run benchmarks/gpu/run.sh there:
#
# bash benchmarks/gpu/offline.sh             for Python 3.12
# bash benchmarks/gpu/offline.sh 3.11        for another one
# bash benchmarks/gpu/offline.sh 3.12 pyarrow==26.0.1       with what else is missing there
set -eu
cd "$(dirname "$0")/../.."
VERSION=${1:-3.12}
PYTHON=${PYTHON:-.venv/bin/python} # whose versions are taken
NAMES="trl datasets dill multiprocess peft rich jinja2 markupsafe markdown-it-py mdurl pytest pytest-timeout pluggy iniconfig"
PACKAGES=$("$PYTHON" -c 'import sys
from importlib.metadata import version
print(*(f"{name}=={version(name)}" for name in sys.argv[1:]))' $NAMES)
LIGER=$(sed -n 's/^bench = \["\(.*\)"\]/\1/p' pyproject.toml)
PLATFORMS=""
for one in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    PLATFORMS="$PLATFORMS --platform ${one}_x86_64"
done
rm -rf .whl
"$PYTHON" -m pip wheel -q --no-deps -w .whl . # for its name and version: the checkout's own code comes first
"$PYTHON" -m pip download -q --no-deps --only-binary=:all: --python-version "$VERSION" --implementation cp $PLATFORMS \
    -d .whl $PACKAGES "$LIGER" "${@:2}"
du -sh .whl
