#!/bin/sh
# Installs what `make bench` measures against: HAProxy, PgBouncer, Pgpool-II, Patroni; and strace, which counts
# system calls. Nobody else needs them. Their services are not started, now or later: the bench runs
# its own with files of its own.
set -eu

missing=""
need() { # package, then the file that shows it is there
    [ -e "$2" ] || missing="$missing $1"
}
need haproxy /usr/sbin/haproxy
need pgbouncer /usr/sbin/pgbouncer
need pgpool2 /usr/sbin/pgpool
need patroni /usr/bin/patroni
need python3-kazoo /usr/lib/python3/dist-packages/kazoo/client.py
need strace /usr/bin/strace
[ -n "$missing" ] || exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || { echo "missing packages:$missing; install them as root (there is no sudo here)" >&2; exit 1; }
    sudo=sudo
fi
command -v apt-get >/dev/null 2>&1 || { echo "missing packages:$missing; this is not Debian, install their like" >&2; exit 1; }

echo "installing:$missing"
# Debian starts the services of what is installed unless this says no (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
    trap '$sudo rm -f "$policy"' EXIT
fi
$sudo apt-get update -q
# shellcheck disable=SC2086  # a list of words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing
for package in $missing; do
    # Some have no service, and not every machine has systemd.
    $sudo systemctl disable -q "$package" 2>/dev/null || true
done
