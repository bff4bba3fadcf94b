# Sourced by the other scripts: makes or reuses a virtual environment, and leaves its interpreter
# in $python. The shell options of the caller (set -euo pipefail) hold.
#
#   MBRL_JAX_VENV   where the environment is (default: .venv in the repository)
#   PYTHON          the interpreter to make it with (default: the first of 3.11, 3.12, 3.13 found)

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${MBRL_JAX_VENV:-$root/.venv}"
case "$venv" in /*) ;; *) venv="$PWD/$venv" ;; esac
python="$venv/bin/python"

# Whether $1 runs, is new enough, and can make a virtual environment with pip. A pyenv shim is
# found on the PATH and may still not run.
usable_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if usable_python "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  if [ -n "${PYTHON:-}" ]; then
    echo "PYTHON=$PYTHON does not run, is older than Python 3.11, or lacks the venv module." >&2
  else
    echo "No Python 3.11, 3.12 or 3.13 with the venv module was found." >&2
  fi
  echo "Install one (on Debian or Ubuntu: sudo apt-get install python3-venv)," \
    "or name one with PYTHON=/path/to/python3." >&2
  return 1
}

# What the installation depends on; an editable install also depends on where the repository is.
fingerprint() {
  { echo "$root"; cat "$root/setup.cfg" "$root/pyproject.toml" "$root/constraints.txt"; } | cksum
}

make_venv() {
  if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    echo "$venv exists and is no virtual environment; name another with MBRL_JAX_VENV." >&2
    return 1
  fi
  local base
  base="$(find_python)"
  echo "Making a virtual environment in $venv with $("$base" --version)"
  "$base" -m venv --clear "$venv"
}

install_packages() {
  local stamp="$venv/mbrl_jax.stamp"
  if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint)" ]; then
    return
  fi
  rm -f "$stamp"  # an installation that is cut off must not look finished
  echo "Installing mbrl_jax and what it needs (once; some minutes on a slow connection)"
  (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable '.[test]')
  fingerprint >"$stamp"
}

if ! "$python" -c 'import pip' >/dev/null 2>&1; then
  make_venv
fi
install_packages
