#!/usr/bin/env bash
# synchronous_standby_names = 'FIRST 2 (a, b)', one standby connected as "b" twice, none as "a".
#
# Guess: two *different* names of the list must confirm, so without "a" a commit waits.
# Reality: PostgreSQL counts walsenders, not names. Two connections with the same application_name are two synchronous
# standbys; the commit returns although nobody is "a", with one copy where two were asked for. A second receiver under a
# known name (a backup tool, a clone started from a copied configuration) silently weakens the guarantee.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a"
start "$work/a" 6001
q 6001 "create table t (x int)"
copy 6001 "$work/b" b
start "$work/b" 6002
wait_for 6001 "select count(*) from pg_stat_replication where application_name = 'b' and state = 'streaming'" 1
q 6001 "alter system set synchronous_standby_names = 'FIRST 2 (a, b)'" && q 6001 "select pg_reload_conf()" >/dev/null
wait_for 6001 "show synchronous_standby_names" "FIRST 2 (a, b)"
status=0
as timeout 5 "$bin/psql" -h "$work" -p 6001 -U postgres -XAtqc "insert into t values (1)" >/dev/null 2>&1 || status=$?
expect "one connection named b: the commit waits (exit status of timeout)" "$status" 124
as mkdir "$work/received"
as bash -c "echo \$\$ >'$work/received/pid'; exec '$bin/pg_receivewal' --synchronous -D '$work/received' \
    -d 'host=$work port=6001 user=postgres application_name=b'" >/dev/null 2>&1 &
trap 'kill "$(cat "$work/received/pid")" 2>/dev/null || true; stop_servers' EXIT
wait_for 6001 "select count(*) from pg_stat_replication where application_name = 'b' and state = 'streaming'" 2
status=0
as timeout 20 "$bin/psql" -h "$work" -p 6001 -U postgres -XAtqc "insert into t values (2)" >/dev/null 2>&1 || status=$?
expect "two connections named b: the commit returns" "$status" 0
expect "names that confirmed" "$(q 6001 "select string_agg(distinct application_name, ',') from pg_stat_replication where sync_state = 'sync'")" "b"
