# shellcheck shell=bash
# What scripts/quickstart and scripts/test share: the environment in .venv, and Debian's packages.
# Sourced, not run. Sets root (the checkout) and python (the one in .venv, after make_venv).

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$root/.venv/bin/python

say() { printf '%s\n' "$*"; }
warn() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  warn "error: $*"
  exit 1
}

is_root() { [ "$(id -u)" = 0 ]; }
have() { command -v "$1" >/dev/null 2>&1; }

# apt_install PACKAGE...: as root on Debian; services that the packages bring are not started.
# A subshell, so that its trap takes the guard away again however this ends.
apt_install() (
  guard=/usr/sbin/policy-rc.d made='' log=$(mktemp)
  trap 'rm -f "$log" ${made:+"$guard"}' EXIT
  if [ ! -e "$guard" ]; then
    made=1
    printf '#!/bin/sh\nexit 101\n' >"$guard"
    chmod 755 "$guard"
  fi
  if ! { apt-get -q update &&
    DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@"; } </dev/null >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    exit 1
  fi
)

# find_python: the first interpreter that is new enough, $PYTHON before all others.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  return 1
}

# make_venv: create .venv unless it is there. Debian keeps what venv needs in a package of its own.
make_venv() {
  local base
  if [ -e "$python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
      die "$root/.venv has no working Python 3.11 or later: remove that folder and run this again"
    return
  fi
  if ! base=$(find_python); then
    if is_root && have apt-get; then
      apt_install python3 python3-venv || die "apt-get could not install python3 and python3-venv"
    fi
    base=$(find_python) || die "Python 3.11 or later is needed: apt install python3 python3-venv (or set PYTHON)"
  fi
  if ! "$base" -c 'import ensurepip' 2>/dev/null; then
    if is_root && have apt-get; then
      apt_install python3-venv || die "apt-get could not install python3-venv"
    fi
    "$base" -c 'import ensurepip' 2>/dev/null || die "$base can't make environments: apt install python3-venv"
  fi
  "$base" -m venv "$root/.venv" || {
    rm -rf "$root/.venv" # half an environment would be taken for a whole one next time
    die "could not make $root/.venv"
  }
}

# pip_install MARK WORD...: quietly, and only when pyproject.toml or the checkout's place has changed
# since the last time, so that a second run needs no network.
pip_install() {
  local mark=$root/.venv/.installed-$1 state
  shift
  state="$root $(sha256sum <"$root/pyproject.toml")"
  if [ -e "$mark" ] && [ "$(cat "$mark")" = "$state" ]; then return; fi
  "$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input "$@" </dev/null ||
    die "pip could not install what imgdb needs (see above)"
  printf '%s\n' "$state" >"$mark"
}
