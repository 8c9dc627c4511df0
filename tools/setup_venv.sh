#!/usr/bin/env bash
# Make .venv beside this checkout's scripts and install what a requirements file names. Does nothing when that is done.
# usage: tools/setup_venv.sh REQUIREMENTS_FILE      environment: PYTHON (python3.11 or python3), MINDSPORE (2.7.1)
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=$1
mindspore=${MINDSPORE:-2.7.1}

python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "Python 3.11 is needed (found: ${python:-none}). Install it, or name it: PYTHON=/path/to/python3.11 $0 ..." >&2
    exit 1
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv

mark=.venv/installed-$(basename "$requirements" .txt)
wanted="mindspore==$mindspore $(cat requirements*.txt | cksum)"
if [ "$(cat "$mark" 2>/dev/null || true)" != "$wanted" ]; then
    echo "installing $requirements with MindSpore $mindspore into .venv (a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "mindspore==$mindspore" -r "$requirements"
    # mindone asks for opencv-python, which needs a desktop's libraries and shares its folder with the headless build:
    # put the headless one on top.
    frozen=$(.venv/bin/python -m pip freeze)
    if grep -q '^opencv-python==' <<< "$frozen"; then
        headless=$(grep '^opencv-python-headless==' <<< "$frozen")
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$headless"
    fi
    printf '%s' "$wanted" > "$mark"
fi
