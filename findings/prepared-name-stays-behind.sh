#!/usr/bin/env bash
# A prepared INSERT names its table without a schema; then a table of that name is created in a schema that stands
# earlier in the same search_path.
#
# Guess: PostgreSQL re-analyses a prepared statement when name resolution changes, as it does after ALTER TABLE, so the
# row goes where the same INSERT would go if it were prepared now.
# Reality: a cached statement is re-analysed when something it *uses* changes, or when the search_path setting does. A new
# object that comes to stand in front is neither: the prepared statement goes on writing to the old table without an
# error, while the same text prepared anew writes to the new one. Whoever shares prepared statements between clients
# gives new clients the old meaning.
. "$(dirname "$0")/lib/postgres17.bash"
"$bin/postgres" --version

init "$work/a"
start "$work/a" 6001
q 6001 "create schema front; create schema back; create table back.t (x text)"
rows=$(as "$bin/psql" -h "$work" -p 6001 -U postgres -XAtq -v ON_ERROR_STOP=1 <<SQL
set search_path = front, back;
prepare old as insert into t values (\$1);
execute old('before');
create table front.t (x text);
execute old('prepared before the new table');
prepare new as insert into t values (\$1);
execute new('prepared after it');
select 'back: ' || string_agg(x, ', ' order by x) from back.t;
select 'front: ' || string_agg(x, ', ' order by x) from front.t;
SQL
)
expect "where the rows went" "$(echo "$rows" | paste -sd '|')" \
    "back: before, prepared before the new table|front: prepared after it"
