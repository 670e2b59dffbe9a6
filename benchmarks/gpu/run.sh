#!/usr/bin/env bash
# The GPU check on a bare machine with a GPU and without a network, from the repository's root:
#
# bash benchmarks/gpu/run.sh 500                            seconds, for all parts
# bash benchmarks/gpu/run.sh 200 --only values kernel       options of `python -m benchmarks gpu`
#
# The wheels of benchmarks/gpu/offline.sh, in .whl, are installed into a temporary folder. PYTHON names the Python with
# torch. The results lie in $OUT, output/gpu by default: report.md, one JSON file for each part, and the log.
set -u
cd "$(dirname "$0")/../.."
SECONDS_LEFT=${1:-500}
OUT=${OUT:-output/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
LOCAL=$(mktemp -d)
trap 'rm -rf "$LOCAL"' EXIT
export PYTHONUNBUFFERED=1
# Caches of the compilers on the local disk
export TORCHINDUCTOR_CACHE_DIR="$LOCAL/inductor" TRITON_CACHE_DIR="$LOCAL/triton"
if [ -d .whl ]; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$LOCAL/site" .whl/*.whl || exit 1
    export PYTHONPATH="$LOCAL/site${PYTHONPATH:+:$PYTHONPATH}"
fi
timeout -k 5 $((SECONDS_LEFT + 60)) "$PYTHON" -m benchmarks gpu --seconds "$SECONDS_LEFT" --output "$OUT" "${@:2}" \
    2>&1 | tee "$OUT/log"
exit "${PIPESTATUS[0]}"
