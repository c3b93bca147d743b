#!/usr/bin/env bash
# A server is started with -c max_connections=80 while postgresql.conf says 50, and its configuration is reloaded without
# any change to a file.
#
# Guess: the command line wins over files, so pg_settings.pending_restart stays false; a restart by the same command would
# change nothing.
# Reality: after the first reload pending_restart is true, for good. Each restart with the same option clears it until the
# next reload. Who watches pending_restart counts a change that no restart brings about.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a" "max_connections = 50"
servers+=("$work/a")
as "$bin/pg_ctl" -D "$work/a" -o "-p 6001 -c max_connections=80" -l "$work/a/log" -w -t 60 start >/dev/null
pending() { q 6001 "select setting || ' ' || source || ' ' || pending_restart from pg_settings where name = 'max_connections'"; }
expect "max_connections after the start" "$(pending)" "80 command line false"
q 6001 "select pg_reload_conf()" >/dev/null
wait_for 6001 "select pending_restart from pg_settings where name = 'max_connections'" t
expect "after a reload of the same files" "$(pending)" "80 command line true"
as "$bin/pg_ctl" -D "$work/a" -o "-p 6001 -c max_connections=80" -l "$work/a/log" -w -t 60 restart >/dev/null
expect "after a restart by the same command" "$(pending)" "80 command line false"
