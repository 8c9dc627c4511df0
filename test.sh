#!/usr/bin/env bash
# Set up and run every check and test. Arguments go to pytest: ./test.sh -m "not slow", ./test.sh tests/unit
# Environment: MINDSPORE (2.7.1).
set -euo pipefail
cd "$(dirname "$0")"
tools/setup_venv.sh requirements-dev.txt
.venv/bin/ruff check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
