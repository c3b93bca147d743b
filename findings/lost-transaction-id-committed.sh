#!/usr/bin/env bash
# A client learns its transaction's id, its primary is lost before the commit reached the standby, the standby is
# promoted, and the client asks the new primary with pg_xact_status() what became of the transaction.
#
# Guess: the new primary never heard of that id, so the answer is "aborted", NULL or an error, now and later.
# Reality: first an error (22023, "is in the future"); after a few other transactions "committed", because the new
# primary hands the lost ids out again. The answer is about somebody else's transaction. It can be trusted only for
# ids below pg_snapshot_xmax(pg_current_snapshot()) taken on the standby when it had replayed all it ever received.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a"
start "$work/a" 6001
q 6001 "create table t (x int)"
copy 6001 "$work/b" b
start "$work/b" 6002
end=$(q 6001 "select pg_current_wal_flush_lsn()")
wait_for 6002 "select pg_last_wal_replay_lsn() >= '$end'" t
# The standby is cut off from what comes now.
q 6002 "alter system set primary_conninfo = ''" && q 6002 "select pg_reload_conf()" >/dev/null
wait_for 6002 "select count(*) from pg_stat_wal_receiver" 0
horizon=$(q 6002 "select pg_snapshot_xmax(pg_current_snapshot())")
lost=$(q 6001 "begin; insert into t values (1); select pg_current_xact_id(); commit")
as "$bin/pg_ctl" -D "$work/a" -m immediate -w stop >/dev/null
q 6002 "select pg_promote()" >/dev/null
wait_for 6002 "select pg_is_in_recovery()" f

first=$(q 6002 "select pg_xact_status('$lost')" 2>&1 || true)
echo "at once: $first"
case $first in *"is in the future"*) ;; *) echo "CHANGED: expected 'is in the future'" >&2; exit 1 ;; esac
for n in 1 2 3; do q 6002 "insert into t values (100 + $n)"; done
expect "after three other transactions" "$(q 6002 "select pg_xact_status('$lost')")" "committed"
expect "rows that the lost transaction wrote" "$(q 6002 'select count(*) from t where x = 1')" "0"
expect "the lost id is below the standby's horizon" "$(q 6002 "select '$lost'::xid8 < '$horizon'::xid8")" "f"
