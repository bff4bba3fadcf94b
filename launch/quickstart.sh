#!/usr/bin/env bash
# Trains a Mamba world model on Catch, four seeds at once, in a virtual environment of its own.
#
#   bash launch/quickstart.sh                               about five minutes on two cores
#   bash launch/quickstart.sh --seed=1 --workdir=runs/one   any flag of `python -m launch.train`
#
# The same command goes on where it was stopped, and shows the result of a finished run again.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
cd "$root"

workdir="runs/quickstart"
previous=""
for argument in "$@"; do
  case "$argument" in
    --workdir=* | -workdir=*) workdir="${argument#*=}" ;;
  esac
  case "$previous" in --workdir | -workdir) workdir="$argument" ;; esac
  previous="$argument"
done
if [ -e "$workdir/config.json" ]; then
  echo "$workdir holds a run, and the same command goes on with it. To start anew, add" \
    "--workdir=runs/another (paths are relative to $root)."
fi

# Later flags win, so "$@" may set any of these again.
exec "$python" -m launch.train --experiment=drama_catch --num_seeds=4 \
  --workdir=runs/quickstart "$@"
