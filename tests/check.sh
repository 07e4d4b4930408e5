#!/usr/bin/env bash
# Every check of the project: format, lint, types, tests. Run ./setup.sh first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
[ -n "${VIRTUAL_ENV-}" ] || . .venv/bin/activate
pip install --quiet --disable-pip-version-check -r tests/requirements.txt
ruff format --check .
ruff check .
mypy
# Two processes; tests of one file share its fixtures, so stay together.
pytest --numprocesses 2 --dist loadfile "$@"
