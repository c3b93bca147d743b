#!/usr/bin/env bash
# A reload (pg_reload_conf) of a postgresql.conf with one bad line and one good new setting behind it.
#
# Guess: the bad line is skipped with a warning, whatever is wrong with it, and the good setting takes effect.
# Reality: it depends on the kind of mistake. With a value that does not fit, the other settings are applied; with a
# name that does not exist, nothing at all is, also not later settings that have nothing to do with it. For a manager
# that re-points or promotes a server by rewriting its settings, one misspelt name in an operator's part of the file
# disables every reload until it is gone, and pg_reload_conf() answers true all the same.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a"
start "$work/a" 6001
conf=$work/a/postgresql.conf
try() { # title, bad line, what work_mem should be then
    as cp "$conf" "$conf.kept"
    printf '%s\nwork_mem = 7MB\n' "$2" | as tee -a "$conf" >/dev/null
    expect "$1: pg_reload_conf() answers" "$(q 6001 'select pg_reload_conf()')" t
    # The last line of the log about this reload tells when it is over.
    for n in $(seq 100); do
        grep -q "contains errors" "$work/a/log" && break
        sleep 0.1
    done
    grep "contains errors" "$work/a/log" | tail -n 1 | sed 's/^.*LOG: */    /'
    expect "$1: work_mem is" "$(q 6001 'show work_mem')" "$3"
    as truncate -s 0 "$work/a/log"
    as mv "$conf.kept" "$conf"
    q 6001 "select pg_reload_conf()" >/dev/null
    wait_for 6001 "show work_mem" 4MB
}
try "ill-typed value" "maintenance_work_mem = lots" 7MB
try "misspelt name" "maintenance_work_memm = 64MB" 4MB
