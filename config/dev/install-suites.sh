#!/bin/sh
# Installs what `make suites` needs beyond the build: Python with virtual environments. Nobody else needs them.
set -eu

missing=""
need() { # package, then the file or command that shows it is there
    case "$2" in
        /*) [ -e "$2" ] && return 0 ;;
        *) command -v "$2" >/dev/null 2>&1 && return 0 ;;
    esac
    missing="$missing $1"
}
need python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -n "$missing" ] || exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "missing packages:$missing; install them as root (there is no sudo here)" >&2; exit 1; }
    sudo=sudo
fi
command -v apt-get >/dev/null 2>&1 || { echo "missing packages:$missing; this is not Debian, install their like" >&2; exit 1; }
echo "installing:$missing"
$sudo apt-get update -q
# shellcheck disable=SC2086  # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
