// node-postgres' own pool: a stack (see ../README.md).
"use strict";

const fs = require("fs");
const readline = require("readline");
const { Client, Pool } = require("pg");

const WORKERS = 6;
const options = {};
for (let at = 2; at + 1 < process.argv.length; at += 2) {
  options[process.argv[at].slice(2)] = process.argv[at + 1];
}
const [size, least] = [Number(options.size), Number(options.least)];

const connections = new Map();
const pools = {};
const rates = {};
const kept = [];
const own = [];
const counts = { served: 0, failed: 0 };
let waiting = 0;

const now = () => Date.now() / 1000;
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

function made() {
  // A connection that the server ends is reported by the pool; the next checkout opens another.
  const pool = new Pool({ max: size, idleTimeoutMillis: 0, connectionTimeoutMillis: 5000 });
  pool.on("error", (error) => console.error(error.message));
  return pool;
}

/** Asks who we are at the server, and takes so long for it. */
async function ask(client, pool, seconds, why) {
  const sql = `SELECT pg_backend_pid() AS backend, inet_client_port() AS port FROM pg_sleep(${seconds})`;
  const { backend, port } = (await client.query(sql)).rows[0];
  const uses = (connections.get(port)?.uses ?? 0) + 1;
  connections.set(port, { pool, port, backend, leased: true, kept: why, since: now(), uses });
  return { client, port, why };
}

async function take(pool) {
  waiting += 1;
  try {
    return await pools[pool].connect();
  } finally {
    waiting -= 1;
  }
}

function give({ client, port }) {
  Object.assign(connections.get(port), { leased: false, kept: "", since: now() });
  client.release();
}

async function serve(pool, seconds) {
  const client = await take(pool);
  let lease;
  try {
    lease = await ask(client, pool, seconds, "");
  } catch (error) {
    client.release(error);
    throw error;
  }
  give(lease);
}

async function fill(pool, number) {
  const leases = [];
  while (leases.length < number) {
    leases.push(await ask(await take(pool), pool, 0, ""));
  }
  leases.forEach(give);
  return number;
}

async function keep(number, why) {
  const ports = [];
  while (ports.length < number) {
    const client = await take("main");
    if (why === "leak") await client.query("BEGIN");
    const lease = await ask(client, "main", 0, why);
    kept.push(lease);
    ports.push(lease.port);
  }
  return ports;
}

async function repair() {
  const all = kept.splice(0);
  for (const lease of all) {
    if (lease.why === "leak") await lease.client.query("COMMIT");
    give(lease);
  }
  return all.length;
}

/** One of the tasks that share a rate. */
async function work(pool, number) {
  let due = Date.now() + (1000 * number) / rates[pool];
  while (rates[pool] > 0) {
    await pause(Math.max(0, due - Date.now()));
    // People do not come by the clock; a steady beat would always or never meet the agent's own.
    due += (1000 * WORKERS * (0.2 + 1.6 * Math.random())) / Math.max(rates[pool], 0.1);
    try {
      await serve(pool, 0.004);
      counts.served += 1;
    } catch (error) {
      console.error(error.message);
      counts.failed += 1;
    }
  }
}

async function traffic(pool, rate) {
  if (!pools[pool]) {
    pools[pool] = made();
    await fill(pool, size);
  }
  const was = rates[pool] ?? 0;
  rates[pool] = rate;
  for (let number = 0; number < WORKERS && rate > 0 && was === 0; number += 1) work(pool, number);
  return rate;
}

async function burst(number, seconds) {
  await Promise.all(Array.from({ length: number }, () => serve("main", seconds)));
  return number;
}

/** A connection of its own, outside the pools. */
async function byItself(why, application_name, ...statements) {
  const client = new Client({ application_name });
  await client.connect();
  const { port } = await ask(client, "own", 0, why);
  for (const sql of statements) await client.query(sql);
  own.push(client);
  return port;
}

const application = process.env.PGAPPNAME;
const commands = {
  fill: (number) => fill("main", Number(number)),
  traffic: (rate) => traffic("main", Number(rate)),
  second: (rate) => traffic("second", Number(rate)),
  leak: (number) => keep(Number(number), "leak"),
  keep: (number) => keep(Number(number), "keep"),
  repair,
  burst: (number, seconds) => burst(Number(number), Number(seconds)),
  listen: () => byItself("listen", application, "LISTEN orders"),
  lock: () => byItself("lock", application, "SELECT pg_advisory_lock(7)"),
  batch: () => byItself("batch", "nightly-batch", "BEGIN", "SELECT count(*) FROM pg_class"),
  served: async () => ({ ...counts }),
};

function tell() {
  const line = { at: now(), waiting, connections: [...connections.values()] };
  fs.appendFileSync(options.truth, `${JSON.stringify(line)}\n`);
}

async function main() {
  pools.main = made();
  await fill("main", least);
  setInterval(tell, 200);
  console.log(JSON.stringify({ ready: process.pid }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...values] = line.trim().split(" ");
    try {
      console.log(JSON.stringify({ did: await commands[name](...values) }));
    } catch (error) {
      console.log(JSON.stringify({ failed: String(error) }));
    }
  }
  process.exit(0);
}

main();
