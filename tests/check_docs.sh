#!/usr/bin/env bash
# Builds the pages and the API reference as a site, docs/_build/html. A broken link or reference fails. Run ./setup.sh first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck disable=SC1091
[ -n "${VIRTUAL_ENV-}" ] || . .venv/bin/activate
python -c "
import tomllib
print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'], sep='\n')
" | pip install --quiet --disable-pip-version-check -r /dev/stdin
rm -rf docs/_build
PYTHONPATH=. TF_CPP_MIN_LOG_LEVEL=2 sphinx-build --quiet --nitpicky --fail-on-warning --keep-going -c docs . docs/_build/html "$@"
cp docs/_build/html/README.html docs/_build/html/index.html
echo "The site is in docs/_build/html."
