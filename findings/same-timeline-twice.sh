#!/usr/bin/env bash
# Two standbys of one primary, each promoted by itself from the same WAL position, each then given a row of its own.
#
# Guess: they are on two different timelines; pg_rewind of one to the other sees the divergence and repairs it.
# Reality: both take the same timeline number (each looks only for history files it can see), and pg_rewind compares
# numbers only: it says "no rewind required" and exits 0, while the two hold different rows. A program that trusts
# the exit status goes on with two histories under one number; what tells them apart is the system's own record of
# who was promoted, not the timeline.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a" "wal_log_hints = on"
start "$work/a" 6001
q 6001 "create table t (who text)"
copy 6001 "$work/b" b
copy 6001 "$work/c" c
start "$work/b" 6002
start "$work/c" 6003
end=$(q 6001 "select pg_current_wal_flush_lsn()")
for port in 6002 6003; do
    wait_for $port "select pg_last_wal_replay_lsn() >= '$end'" t
done
as "$bin/pg_ctl" -D "$work/a" -m fast -w stop >/dev/null
for port in 6002 6003; do
    q $port "select pg_promote()" >/dev/null
    wait_for $port "select pg_is_in_recovery()" f
done
q 6002 "insert into t values ('b')"
q 6003 "insert into t values ('c')"
for port in 6002 6003; do q $port "checkpoint"; done
b=$(q 6002 "select timeline_id from pg_control_checkpoint()")
c=$(q 6003 "select timeline_id from pg_control_checkpoint()")
expect "timelines of the two" "$b $c" "2 2"
as "$bin/pg_ctl" -D "$work/c" -m fast -w stop >/dev/null
status=0
said=$(as "$bin/pg_rewind" -D "$work/c" --source-server="host=$work port=6002 user=postgres dbname=postgres" 2>&1) || status=$?
echo "pg_rewind says: $said"
expect "its exit status" "$status" "0"
case $said in *"no rewind required"*) ;; *) echo "CHANGED: it no longer says that no rewind is required" >&2; exit 1 ;; esac
start "$work/c" 6003
expect "rows of the two afterwards" "$(q 6002 'select who from t') $(q 6003 'select who from t')" "b c"
