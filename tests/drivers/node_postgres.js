// node-postgres: transactions, prepared statements, cancel by timeout, LISTEN, many clients of a pool.
const { Client, Pool } = require("pg");
const assert = require("assert");

async function main() {
  const client = new Client();
  await client.connect();
  await client.query("drop table if exists node_postgres");
  await client.query("create table node_postgres (id int primary key, name text)");
  await client.query("begin");
  await client.query("insert into node_postgres values ($1, $2)", [1, "one"]);
  await client.query("commit");
  await client.query("begin");
  await client.query("insert into node_postgres values (2, 'two')");
  await client.query("rollback");
  assert.strictEqual((await client.query("select count(*)::int as n from node_postgres")).rows[0].n, 1);

  for (let number = 0; number < 20; number++) {
    const query = { name: "plus", text: "select $1::int + 1 as n", values: [number] };
    assert.strictEqual((await client.query(query)).rows[0].n, number + 1);
  }
  await assert.rejects(client.query("insert into node_postgres values (1, 'again')"), { code: "23505" });
  await assert.rejects(client.query("select 1/0"), { code: "22012" });

  // Sent one after another without waiting.
  const many = await Promise.all([...Array(50).keys()].map((n) => client.query("select $1::int as n", [n])));
  assert.deepStrictEqual(many.map((result) => result.rows[0].n), [...Array(50).keys()]);

  const impatient = new Client({ statement_timeout: 500 });
  await impatient.connect();
  await assert.rejects(impatient.query("select pg_sleep(30)"), { code: "57014" });
  assert.strictEqual((await impatient.query("select 1 as n")).rows[0].n, 1);
  await impatient.end();

  const pid = (await client.query("select pg_backend_pid() as pid")).rows[0].pid;
  assert.ok(pid > 0);

  const listener = new Client();
  await listener.connect();
  const heard = new Promise((resolve) => listener.on("notification", (message) => resolve(message.payload)));
  await listener.query("listen node_postgres");
  await client.query("notify node_postgres, 'hello'");
  assert.strictEqual(await heard, "hello");
  await listener.end();

  const pool = new Pool({ max: 10 });
  await Promise.all([...Array(100).keys()].map(async (n) => {
    const one = await pool.connect();
    try {
      await one.query("begin");
      await one.query("insert into node_postgres values ($1, 'x')", [1000 + n]);
      await one.query("commit");
      const { rows } = await one.query("select id from node_postgres where id = $1", [1000 + n]);
      assert.strictEqual(rows.length, 1);
    } finally {
      one.release();
    }
  }));
  await pool.end();
  await client.end();
  console.log("ok");
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
