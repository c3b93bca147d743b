#!/bin/sh
# PostgreSQL's tests of isolation: sessions that wait for each other, step by step.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=tests/suites/regress.sh
. "$here/regress.sh"

fetch() {
    "$here/../conformance/fetch.sh" "$folder/postgresql"
    cat "$folder/postgresql/.version" > "$folder/isolation.version"
}

# A selection of what is quick and about sessions: locks, snapshots, deadlocks, what is seen when.
selection="read-only-anomaly read-only-anomaly-2 read-write-unique simple-write-skew temporal-range-integrity
    total-cash two-ids deadlock-simple deadlock-hard fk-contention fk-deadlock lock-update-delete
    insert-conflict-do-nothing insert-conflict-do-update insert-conflict-specconflict delete-abort-savept
    aborted-keyrevoke multixact-no-deadlock skip-locked nowait eval-plan-qual-trigger async-notify
    create-trigger vacuum-conflict plpgsql-toast prepared-transactions-cic"

run() {
    cp -r "$folder/postgresql/isolation" "$results/work"
    cd "$results/work"
    # Its sessions look at each other's commits: an application of several sessions has to ask for that (docs/tuning.md).
    export PGOPTIONS="-c manatee.consistency=strong"
    status=0
    # shellcheck disable=SC2086  # a list of words
    case $tests in
        all) set -- --schedule isolation_schedule prepared-transactions prepared-transactions-cic ;;
        selection) set -- $selection ;;
        *) set -- $tests ;;
    esac
    PGISOLATIONTIMEOUT=60 ./pg_isolation_regress --inputdir . --outputdir . --bindir "" --dbname isolation_regression \
        --host "$PGHOST" --port "$PGPORT" --user "$PGUSER" "$@" > "$results/log" 2>&1 || status=$?
    regress_ran "$status" "$results/log"
    mv results/*.out "$results/"
    regress_outcomes "$results/log" "" > "$results/outcomes"
    cd "$results"
    rm -rf "$results/work"
}

. "$here/main.sh"
