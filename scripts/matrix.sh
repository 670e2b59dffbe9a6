#!/bin/sh
# The quick tests with each Python and with the oldest and the newest transformers that pyproject.toml allows, each in an
# environment of its own below .matrix/. TRL has one version so far that this package runs with. From the repository's root:
#
# sh scripts/matrix.sh
# PYTHONS="/opt/python3.12/bin/python3" sh scripts/matrix.sh -k teacher     what follows goes to pytest
set -u
cd "$(dirname "$0")/.."

PYTHONS=${PYTHONS:-python3.11 python3.12 python3.13}
TRANSFORMERS="5.17.0 5.23.0"
RESULTS=.matrix/results.txt

mkdir -p .matrix
: >"$RESULTS"
failed=0

run() {
    python=$1 transformers=$2
    shift 2
    version=$("$python" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")' 2>/dev/null)
    if [ -z "$version" ]; then
        echo "$python: not here" >>"$RESULTS"
        return
    fi
    name="python $version, transformers $transformers"
    venv=.matrix/$version-$transformers
    PYTHON=$python VENV=$venv WITH="transformers==$transformers" sh scripts/setup.sh || {
        echo "$name: not installed, see $venv/setup.log" >>"$RESULTS"
        failed=1
        return
    }
    "$venv/bin/python" -m pytest -m "not engines" -n 2 --dist loadfile -p no:cacheprovider "$@" 2>&1 | tee "$venv/tests.log"
    summary=$(grep -E '[0-9]+ (passed|failed|errors?)' "$venv/tests.log" | tail -n 1 | tr -d '=')
    case $summary in
    *failed* | *error* | "") failed=1 ;;
    esac
    echo "$name:${summary:- no summary, see $venv/tests.log}" >>"$RESULTS"
}

for python in $PYTHONS; do
    for transformers in $TRANSFORMERS; do
        run "$python" "$transformers" "$@"
    done
done
cat "$RESULTS"
exit $failed
