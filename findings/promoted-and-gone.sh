#!/usr/bin/env bash
# A hot standby whose primary was restarted with a higher max_connections, and has replayed up to that record. It answers
# reads, streams, and has received all that was committed since. Now it is to take over: pg_promote(false).
#
# Guess: promotion ends recovery at what was replayed, or is refused with false, and the standby stays what it is.
# Reality: replay pauses at the record (PostgreSQL 14 and newer), while pg_stat_replication goes on to say "streaming".
# pg_promote(false) returns true; then the server logs a FATAL, "recovery aborted because of insufficient parameter
# settings", and shuts down. The only way to promote it is to start it again with the higher value first; and that value
# is in pg_control already, where pg_controldata shows it.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a" "max_connections = 50"
start "$work/a" 6001
q 6001 "create table t (i int)"
copy 6001 "$work/b" b
start "$work/b" 6002
wait_for 6001 "select state from pg_stat_replication" streaming
as "$bin/pg_ctl" -D "$work/a" -m fast -w stop >/dev/null
echo "max_connections = 80" | as tee -a "$work/a/postgresql.conf" >/dev/null
start "$work/a" 6001
wait_for 6002 "select pg_get_wal_replay_pause_state()" paused
q 6001 "insert into t values (1)"
wait_for 6001 "select flush_lsn >= pg_current_wal_flush_lsn() from pg_stat_replication" t
expect "state of the paused standby at the primary" "$(q 6001 "select state from pg_stat_replication")" "streaming"
expect "rows it shows" "$(q 6002 "select count(*) from t")" "0"
value=$(as "$bin/pg_controldata" "$work/b" | sed -n 's/^max_connections setting: *//p')
expect "max_connections in its pg_control" "$value" "80"
expect "answer of pg_promote(false)" "$(q 6002 "select pg_promote(false)")" "t"
for _ in $(seq 300); do
    as "$bin/pg_ctl" -D "$work/b" status >/dev/null 2>&1 || break
    sleep 0.1
done
expect "server after it" "$(as "$bin/pg_ctl" -D "$work/b" status | head -1)" "pg_ctl: no server running"
expect "FATAL in its log" "$(grep -o 'FATAL: .*' "$work/b/log" | tail -1)" \
    "FATAL:  recovery aborted because of insufficient parameter settings"
echo "max_connections = 80" | as tee -a "$work/b/postgresql.conf" >/dev/null
start "$work/b" 6002
q 6002 "select pg_promote()" >/dev/null
expect "rows after a start with 80 and a promotion" "$(q 6002 "select count(*) from t")" "1"
