#!/bin/sh
# The quick tests with each Python, and with the oldest and the newest versions that pyproject.toml allows, each in an
# environment of its own below .matrix/; with the first Python also those of torch between them. TRL has one version so
# far that this package runs with. From the repository's root:
#
# sh scripts/matrix.sh
# PYTHONS="/opt/python3.12/bin/python3" sh scripts/matrix.sh -k teacher     what follows goes to pytest
set -u
cd "$(dirname "$0")/.."

PYTHONS=${PYTHONS:-python3.11 python3.12 python3.13}
OLDEST_TORCH=2.11.0
OLDEST="transformers==5.17.0 accelerate==1.11.0 datasets==4.7.0 peft==0.19.1 jinja2==3.1.6 rich==13.9.0"
NEWEST_TORCH=2.14.1
NEWEST="transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 peft==0.21.2 jinja2==3.1.6 rich==15.0.0"
BETWEEN="2.12.1 2.13.0"
RESULTS=.matrix/results.txt

mkdir -p .matrix
: >"$RESULTS"
failed=0

run() {
    python=$1 torch=$2 with=$3
    shift 3
    version=$("$python" -c 'import sys; print(f"{sys.version_info.major}.{sys.version_info.minor}")' 2>/dev/null)
    if [ -z "$version" ]; then
        echo "$python: not here" >>"$RESULTS"
        return
    fi
    name="python $version, torch $torch, $with"
    venv=.matrix/$version-$torch
    PYTHON=$python VENV=$venv TORCH=$torch WITH=$with sh scripts/setup.sh || {
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
    run "$python" "$OLDEST_TORCH" "$OLDEST" "$@"
    run "$python" "$NEWEST_TORCH" "$NEWEST" "$@"
done
for torch in $BETWEEN; do
    run "${PYTHONS%% *}" "$torch" "$NEWEST" "$@"
done
cat "$RESULTS"
exit $failed
