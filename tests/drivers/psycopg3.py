"""psycopg 3: transactions, prepared statements, COPY, cancel, LISTEN, pipelining."""
import threading
import time

import psycopg

connection = psycopg.connect("", autocommit=True)
execute = connection.execute
execute("drop table if exists psycopg3")
execute("create table psycopg3 (id int primary key, name text)")

with connection.transaction():
    execute("insert into psycopg3 values (1, 'one')")
try:
    with connection.transaction():
        execute("insert into psycopg3 values (2, 'two')")
        with connection.transaction():  # a savepoint
            execute("insert into psycopg3 values (3, 'three')")
        raise KeyError
except KeyError:
    pass
assert execute("select count(*) from psycopg3").fetchone() == (1,)

for number in range(20):  # prepared after the fifth time, described, kept by name
    row = execute("select %s::int + 1, name from psycopg3 where id = %s", (number, 1), prepare=True).fetchone()
    assert row == (number + 1, "one"), row
execute("alter table psycopg3 add column more int")
assert execute("select * from psycopg3 where id = %s", (1,), prepare=True).fetchone() == (1, "one", None)

with connection.cursor().copy("copy psycopg3 (id, name) from stdin") as copy:
    for number in range(100, 1100):
        copy.write_row((number, "x" * 100))
with connection.cursor().copy("copy psycopg3 (id) to stdout") as copy:
    assert len(list(copy.rows())) == 1001
try:
    with connection.cursor().copy("copy psycopg3 (id, name) from stdin") as copy:
        copy.write_row((1, "again"))
    raise AssertionError("a duplicate key was copied")
except psycopg.errors.UniqueViolation:
    pass

with psycopg.ServerCursor(connection, "c", withhold=True) as cursor:
    cursor.execute("select id from psycopg3 order by id")
    assert cursor.fetchmany(3) == [(1,), (100,), (101,)]

timer = threading.Timer(0.5, connection.cancel)
timer.start()
began = time.monotonic()
try:
    execute("select pg_sleep(30)")
    raise AssertionError("not cancelled")
except psycopg.errors.QueryCanceled:
    assert time.monotonic() - began < 20
assert execute("select 1").fetchone() == (1,)

with psycopg.connect("", autocommit=True) as listener:
    listener.execute("listen psycopg3")
    execute("notify psycopg3, 'hello'")
    assert next(listener.notifies(timeout=20)).payload == "hello"

with connection.pipeline() as pipeline:
    cursors = [connection.execute("select %s::int", (number,)) for number in range(50)]
    pipeline.sync()
    assert [cursor.fetchone()[0] for cursor in cursors] == list(range(50))
try:
    with connection.pipeline() as pipeline:
        execute("insert into psycopg3 values (5, 'five')")
        pipeline.sync()
        execute("insert into psycopg3 values (1, 'again')")
        execute("insert into psycopg3 values (6, 'six')")
        pipeline.sync()
    raise AssertionError("no error in the pipeline")
except psycopg.errors.UniqueViolation:
    pass
assert execute("select id from psycopg3 where id in (5, 6)").fetchall() == [(5,)]
print("ok")
