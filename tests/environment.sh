# Sourced by tests/run and .ci/run: finds Pythons, installs what is missing, makes virtual environments.

# Debian packages that the tests need, each with its reason.
DEBIAN_PACKAGES=(
    logrotate        # rotates the logs of nodes that run, as docs/novasvc.logrotate says
    rabbitmq-server  # the broker; tests start nodes of their own, and never use the system's
    postgresql       # tests start servers of their own of these, too
    mariadb-server
    chromium         # the browser that clicks through the page
    chromium-driver  # by which it is told to; the one that fits this browser comes from nowhere else
)

say() { printf '\n== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 69; }  # EX_UNAVAILABLE

# A name on PATH proves little: pyenv leaves shims that only say "command not found".
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

version_of() { "$1" -c 'import sys; print("{}.{}".format(*sys.version_info))'; }

# python_for VERSION: prints the path of a working interpreter, or fails.
python_for() {
    local candidate
    for candidate in "python$1" ${HOME:+"$HOME/.pyenv/versions/$1".*/bin/python} /usr/bin/"python$1" /usr/local/bin/"python$1"; do
        if usable "$candidate" && [ "$(version_of "$candidate")" = "$1" ]; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

# main_python: prints the interpreter of the whole run: $PYTHON, or python3, or the oldest that we support and find.
main_python() {
    local version
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" || die "PYTHON=$PYTHON is not a working Python 3.11 or newer"
        "$PYTHON" -c 'import sys; print(sys.executable)'
        return
    fi
    if usable python3; then
        python3 -c 'import sys; print(sys.executable)'
        return
    fi
    for version in 3.11 3.12 3.13 3.14; do python_for "$version" && return; done
    die "no Python 3.11 or newer found; install one (Debian: apt-get install python3), or name one: PYTHON=/path/to/python"
}

# debian PACKAGE...: installs those that are missing; fails if it may not, or there is no apt-get.
debian() {
    local package missing=()
    for package in "$@"; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 1; fi
    say "apt-get install ${missing[*]}"
    (
        # The packages bring servers that their installation would start, on all interfaces.
        policy=/usr/sbin/policy-rc.d
        if [ ! -e "$policy" ]; then
            trap 'rm -f "$policy"' EXIT
            printf '#!/bin/sh\nexit 101\n' >"$policy"
            chmod 755 "$policy"
        fi
        # "set -e" does not hold in a function whose failure is looked at.
        apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${missing[@]}"
    ) >&2 </dev/null
}

# bare PYTHON DIRECTORY: makes an empty environment with pip, by whichever way there is.
bare() {
    rm -rf "$2"
    if "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        "$1" -m venv "$2"
    elif command -v virtualenv >/dev/null; then
        virtualenv -q -p "$1" "$2"
    elif debian python3-venv && "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        "$1" -m venv "$2"
    else
        die "$1 cannot make virtual environments; install what is missing (Debian: apt-get install python3-venv), or virtualenv"
    fi
}

# environment PYTHON DIRECTORY EXTRAS: an editable installation of this checkout; at once if nothing changed since.
environment() {
    local stamp
    stamp=$({ "$1" -VV; echo "$1 $PWD $3"; cat setup.py pyproject.toml novasvc/_version.py; } | sha256sum)
    if [ "$(cat "$2/stamp" 2>/dev/null)" = "$stamp" ] && usable "$2/bin/python"; then return; fi
    say "installing novasvc and what its tests need in ${2##*/} ($("$1" -V))"
    bare "$1" "$2"
    # Debian 12's pip installs what has no wheel the old way, which leaves no record of its files.
    "$2/bin/python" -m pip install -q --disable-pip-version-check --upgrade pip >&2
    # Python compiles what it imports, which is a small part of what is installed.
    "$2/bin/python" -m pip install -q --disable-pip-version-check --no-compile -e ".[$3]" >&2
    printf '%s\n' "$stamp" >"$2/stamp"
}
