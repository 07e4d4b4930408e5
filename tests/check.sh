#!/usr/bin/env bash
# Every check of the project: format, lint, types, tests. Run ./setup.sh first.
# tests/check.sh --quick runs a tenth of the tests, those of tests/quick.txt. Other arguments are for pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
[ -n "${VIRTUAL_ENV-}" ] || . .venv/bin/activate
if [ "${1-}" = --quick ]; then
  shift
  set -- @tests/quick.txt "$@"
fi
pip install --quiet --disable-pip-version-check -r tests/requirements.txt
pre-commit run --all-files --show-diff-on-failure
# Two processes; tests of one file share its fixtures, so stay together.
pytest --numprocesses 2 --dist loadfile "$@"
