#!/usr/bin/env bash
# Set up a machine: system libraries, a virtual environment, the pinned packages. Called by make: setup.sh VENV [PYTHON]
# Nothing that is already there is installed again.
set -euo pipefail

venv=$1
python=${2:-}

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# A candidate counts only if it runs: a version manager's shim may exist for a Python that is not there.
runs() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    if [ -n "$python" ]; then
        runs "$python" || fail "PYTHON=$python is not a Python 3.11 or 3.12"
        return
    fi
    for candidate in python3.12 python3.11 python3; do
        if runs "$candidate"; then python=$candidate; return; fi
    done
    fail "no Python 3.11 or 3.12 found: install one, or name it with make PYTHON=/path/to/python3.12"
}

# MuJoCo renders through one of these; ldconfig may be outside an ordinary user's PATH. grep reads to the end: with -q it
# would end ldconfig by SIGPIPE, which pipefail takes for a library that is not there.
has_library() { PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep "$1" >/dev/null; }

missing_packages() {
    has_library libOSMesa.so || echo libosmesa6
    has_library libEGL.so || echo libegl1
    has_library libGL.so || echo libgl1
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        echo "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
}

install_system_packages() {
    local packages
    mapfile -t packages < <(missing_packages)
    [ "${#packages[@]}" -eq 0 ] && return
    local prefix=()
    [ "$(id -u)" -eq 0 ] || prefix=(sudo -n)
    local command=(apt-get install -y --no-install-recommends "${packages[@]}")
    if command -v apt-get >/dev/null && { [ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null; }; then
        say "installing ${packages[*]}"
        "${prefix[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists that are here"
        "${prefix[@]}" env DEBIAN_FRONTEND=noninteractive "${command[@]}" >/dev/null && return
    fi
    fail "these system packages are missing; install them and run make again:  sudo ${command[*]}"
}

find_python
install_system_packages
if [ ! -x "$venv/bin/python" ] || ! runs "$venv/bin/python"; then
    say "making $venv with $python"
    "$python" -m venv --clear "$venv"
fi
say "installing the pinned packages (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
say "done"
