"""asyncpg: transactions, prepared statements, COPY, cancel, LISTEN, cursors, a reset between users."""
import asyncio

import asyncpg


async def main():
    connection = await asyncpg.connect()
    await connection.execute("drop table if exists asyncpg")
    await connection.execute("create table asyncpg (id int primary key, name text)")
    async with connection.transaction():
        await connection.execute("insert into asyncpg values ($1, $2)", 1, "one")
    try:
        async with connection.transaction():
            await connection.execute("insert into asyncpg values (2, 'two')")
            raise KeyError
    except KeyError:
        pass
    assert await connection.fetchval("select count(*) from asyncpg") == 1

    statement = await connection.prepare("select $1::int + 1")
    for number in range(20):
        assert await statement.fetchval(number) == number + 1
    await connection.executemany("insert into asyncpg values ($1, $2)", [(n, "x") for n in range(10, 60)])
    # A schema change under a cached statement: asyncpg notices by the error, and prepares again.
    await connection.fetch("select * from asyncpg where id = $1", 1)
    await connection.execute("alter table asyncpg add column more int")
    row = await connection.fetchrow("select * from asyncpg where id = $1", 1)
    assert tuple(row) == (1, "one", None), row

    rows = [(n, "y", n) for n in range(100, 600)]
    await connection.copy_records_to_table("asyncpg", records=rows)
    size = 0

    async def count(data):
        nonlocal size
        size += len(data)

    await connection.copy_from_query("select * from asyncpg", output=count)
    assert size > 500

    async with connection.transaction():
        ids = [row["id"] async for row in connection.cursor("select id from asyncpg order by id", prefetch=7)]
    assert len(ids) == 551

    try:
        await asyncio.wait_for(connection.fetch("select pg_sleep(30)"), 0.5)
        raise AssertionError("not cancelled")
    except asyncio.TimeoutError:
        pass
    assert await connection.fetchval("select 7") == 7

    heard = asyncio.get_running_loop().create_future()
    await connection.add_listener("asyncpg", lambda *event: heard.done() or heard.set_result(event[3]))
    other = await asyncpg.connect()
    await other.execute("notify asyncpg, 'hello'")
    assert await asyncio.wait_for(heard, 20) == "hello"

    pool = await asyncpg.create_pool(min_size=2, max_size=5)

    async def work(number):
        async with pool.acquire() as one:
            await one.execute("set work_mem = '5MB'")
            assert await one.fetchval("select $1::int * 2", number) == number * 2
            assert await one.fetchval("show work_mem") == "5MB"

    await asyncio.gather(*(work(number) for number in range(40)))
    async with pool.acquire() as one:
        assert await one.fetchval("show work_mem") == "4MB", "reset by the pool"
    await pool.close()
    await other.close()
    await connection.close()
    print("ok")


asyncio.run(main())
