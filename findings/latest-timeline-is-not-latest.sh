#!/usr/bin/env bash
# Point-in-time recovery from an archive that has 00000003.history and its WAL, but no 00000002.history (the server on
# timeline 2 was lost before it archived anything), with PostgreSQL's default recovery_target_timeline = 'latest'.
#
# Guess: "latest" is the newest timeline that the archive has, so everything up to the last row comes back.
# Reality: PostgreSQL asks the archive for 2, 3, 4 … and stops at the first number that is missing. It restores timeline 1
# only, opens for writing, and says nothing of the rows behind the failover. Naming the number ('3') restores them all.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

as mkdir "$work/archive"
archive="archive_command = 'cp %p $work/archive/%f'"
init "$work/a" "archive_mode = on" "$archive"
start "$work/a" 6001
q 6001 "create table t (x text)"
as "$bin/pg_basebackup" -h "$work" -p 6001 -U postgres -D "$work/base" -c fast
copy 6001 "$work/b" b
echo "archive_mode = off" | as tee -a "$work/b/postgresql.auto.conf" >/dev/null
start "$work/b" 6002
copy 6002 "$work/c" c
echo "archive_mode = on" | as tee -a "$work/c/postgresql.auto.conf" >/dev/null
start "$work/c" 6003
q 6001 "insert into t values ('one')"
q 6001 "select pg_switch_wal()" >/dev/null
wait_for 6003 "select count(*) from t" 1
wait_for 6001 "select last_archived_wal >= '000000010000000000000003' from pg_stat_archiver" t
as "$bin/pg_ctl" -D "$work/a" -m fast -w stop >/dev/null
q 6002 "select pg_promote()" >/dev/null
wait_for 6003 "select received_tli from pg_stat_wal_receiver" 2
q 6003 "select pg_promote()" >/dev/null
wait_for 6003 "select pg_is_in_recovery()" f
q 6003 "insert into t values ('three')"
q 6003 "select pg_switch_wal()" >/dev/null
wait_for 6003 "select last_archived_wal > '00000003' and last_archived_wal not like '%history' from pg_stat_archiver" t
expect "history files in the archive" "$(cd "$work/archive" && ls ./*.history | paste -sd ' ')" "./00000003.history"

restore() { # target timeline, port
    as cp -r "$work/base" "$work/restored-$2"
    as tee -a "$work/restored-$2/postgresql.conf" >/dev/null <<CONF
archive_mode = off
restore_command = 'cp $work/archive/%f %p 2>/dev/null'
recovery_target_timeline = '$1'
CONF
    as touch "$work/restored-$2/recovery.signal"
    start "$work/restored-$2" "$2"
    wait_for "$2" "select pg_is_in_recovery()" f
}
restore latest 6004
expect "rows restored with 'latest'" "$(q 6004 "select string_agg(x, ' ' order by x) from t")" "one"
expect "errors in its log" "$(grep -cE 'ERROR|FATAL|PANIC' "$work/restored-6004/log" || true)" "0"
restore 3 6005
expect "rows restored with '3'" "$(q 6005 "select string_agg(x, ' ' order by x) from t")" "one three"
