#!/usr/bin/env bash
# Lint, types and tests, in a virtual environment that is made on the first call.
#
#   bash tests/run.sh                            everything but what is marked slow
#   bash tests/run.sh tests/experiment -k config any arguments of pytest
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"
cd "$root"

"$python" -m ruff check --config .ci/ruff.toml .
"$python" -m mypy --config-file .ci/mypy.ini --no-error-summary mbrl_jax launch
# loadfile: fixtures that compile a program or run an experiment are made once.
exec "$python" -m pytest -n 2 --dist loadfile "$@"
