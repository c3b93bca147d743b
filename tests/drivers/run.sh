#!/bin/sh
# Smoke programs of drivers against the server that PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE
# name. Fetches the drivers through their registries' ordinary clients into a folder; what cannot be
# had there is said and left out. tokio-postgres is in the proxy's own tests.
#
#   run.sh FOLDER
set -eu

folder=${1:?usage: run.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
failed=0

report() { # name, exit status of the program
    if [ "$2" -eq 0 ]; then
        echo "$1: ok"
    else
        echo "$1: FAILED"
        sed 's/^/    /' "$folder/out"
        failed=1
    fi
}

skip() {
    echo "$1: not run ($2)"
}

run() { # name, command
    name=$1
    shift
    status=0
    timeout 120 "$@" >"$folder/out" 2>&1 || status=$?
    report "$name" "$status"
}

if [ -x "$folder/venv/bin/python" ] || { python3 -m venv "$folder/venv" &&
    "$folder/venv/bin/pip" -q install 'psycopg[binary]' psycopg2-binary asyncpg; } >"$folder/out" 2>&1; then
    run psycopg "$folder/venv/bin/python" "$here/psycopg3.py"
    run psycopg2 "$folder/venv/bin/python" "$here/psycopg2_.py"
    run asyncpg "$folder/venv/bin/python" "$here/asyncpg_.py"
else
    skip "psycopg, psycopg2, asyncpg" "pip: $(tail -1 "$folder/out")"
fi

mkdir -p "$folder/node"
if [ -d "$folder/node/node_modules/pg" ] || (cd "$folder/node" && npm install --silent pg) >"$folder/out" 2>&1; then
    run node-postgres env NODE_PATH="$folder/node/node_modules" node "$here/node_postgres.js"
else
    skip node-postgres "npm: $(tail -1 "$folder/out")"
fi

# Debian's packages, unpacked: nothing is installed.
debs() {
    mkdir -p "$folder/debs"
    for package in "$@"; do
        ls "$folder/debs/$package"_*.deb >/dev/null 2>&1 || (cd "$folder/debs" && apt-get -q download "$package") || return 1
        dpkg -x "$folder/debs/$package"_*.deb "$folder/unpacked" || return 1
    done
}
if ! command -v javac >/dev/null 2>&1; then
    skip pgjdbc "there is no javac: apt-get install default-jdk-headless"
elif debs libpostgresql-jdbc-java libscram-java libstringprep-java >"$folder/out" 2>&1; then
    jars=$(find "$folder/unpacked/usr/share/java" -name '*.jar' | tr '\n' ':')
    mkdir -p "$folder/classes"
    if javac -cp "$jars" -d "$folder/classes" "$here/Pgjdbc.java" >"$folder/out" 2>&1; then
        run pgjdbc java -cp "$jars$folder/classes" Pgjdbc
    else
        report pgjdbc 1
    fi
else
    skip pgjdbc "apt: $(tail -1 "$folder/out")"
fi

if debs golang-1.19-go golang-1.19-src golang-github-lib-pq-dev >"$folder/out" 2>&1; then
    # Debian keeps parts of it elsewhere and links there.
    export GOROOT="$folder/unpacked/usr/lib/go-1.19" GOPATH="$folder/unpacked/usr/share/gocode" GO111MODULE=off
    export GOCACHE="$folder/gocache"
    for part in src pkg api misc test; do
        [ -e "$GOROOT/$part/." ] || { rm -f "$GOROOT/$part" && ln -s "$folder/unpacked/usr/share/go-1.19/$part" "$GOROOT/$part"; }
    done
    if "$GOROOT/bin/go" build -o "$folder/libpq_go" "$here/libpq_go.go" >"$folder/out" 2>&1; then
        run lib/pq "$folder/libpq_go"
    else
        report lib/pq 1
    fi
else
    skip lib/pq "apt: $(tail -1 "$folder/out")"
fi
exit "$failed"
