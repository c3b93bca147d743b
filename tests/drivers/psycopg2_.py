"""psycopg 2: transactions, SQL-level statements, COPY, cancel, LISTEN, named cursors."""
import io
import select
import threading

import psycopg2
import psycopg2.errors
import psycopg2.extensions

connection = psycopg2.connect("")
cursor = connection.cursor()
cursor.execute("drop table if exists psycopg2")
cursor.execute("create table psycopg2 (id int primary key, name text)")
connection.commit()
cursor.execute("insert into psycopg2 values (1, 'one')")
connection.commit()
cursor.execute("insert into psycopg2 values (2, 'two')")
connection.rollback()
cursor.execute("select count(*) from psycopg2")
assert cursor.fetchone() == (1,)
try:
    cursor.execute("insert into psycopg2 values (1, 'again')")
    raise AssertionError("a duplicate key")
except psycopg2.errors.UniqueViolation:
    pass
try:
    cursor.execute("select 1")
    raise AssertionError("not in a failed transaction")
except psycopg2.errors.InFailedSqlTransaction:
    connection.rollback()

cursor.execute("prepare p (int) as select $1 + 1")
connection.commit()
for number in range(5):
    cursor.execute("execute p (%s)", (number,))
    assert cursor.fetchone() == (number + 1,)
    connection.commit()
cursor.execute("deallocate p")
connection.commit()

cursor.copy_expert("copy psycopg2 from stdin", io.StringIO("".join(f"{n}\tx\n" for n in range(100, 600))))
out = io.StringIO()
cursor.copy_expert("copy psycopg2 to stdout", out)
assert out.getvalue().count("\n") == 501
connection.commit()

with connection.cursor("named") as named:
    named.itersize = 50
    named.execute("select id from psycopg2 order by id")
    assert len(list(named)) == 501
connection.commit()

connection.autocommit = True
timer = threading.Timer(0.5, connection.cancel)
timer.start()
try:
    cursor.execute("select pg_sleep(30)")
    raise AssertionError("not cancelled")
except psycopg2.extensions.QueryCanceledError:
    pass

cursor.execute("listen psycopg2")
other = psycopg2.connect("")
other.autocommit = True
other.cursor().execute("notify psycopg2, 'hello'")
while not connection.notifies:
    assert select.select([connection], [], [], 20)[0], "no notification"
    connection.poll()
assert connection.notifies[0].payload == "hello"
cursor.execute("unlisten *")

connection.set_session(readonly=True, autocommit=False)
cursor.execute("select count(*) from psycopg2")
try:
    cursor.execute("delete from psycopg2")
    raise AssertionError("written in a read-only transaction")
except psycopg2.errors.ReadOnlySqlTransaction:
    connection.rollback()
print("ok")
