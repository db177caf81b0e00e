// node-postgres' own pool, with Node's console on a file (see ../README.md).
"use strict";

const fs = require("fs");
const readline = require("readline");
const { format } = require("util");
const { Client, Pool } = require("pg");

const options = {};
for (let at = 2; at + 1 < process.argv.length; at += 2) {
  options[process.argv[at].slice(2)] = process.argv[at + 1];
}
// Written at once: what a request logged is there before its answer.
const file = fs.openSync(options.log, "a");
const write = (...words) => fs.writeSync(file, `${new Date().toISOString()} ${format(...words)}\n`);

// It bounds the opening of a connection, too, which takes its time on a host at work.
const pool = new Pool({ max: 1, idleTimeoutMillis: 0, connectionTimeoutMillis: 1000 });
pool.on("error", (error) => write("ERROR", error));

const serve = () => pool.query("SELECT 1");

async function starve() {
  const kept = await pool.connect();
  try {
    await serve();
  } finally {
    kept.release();
  }
}

async function begin() {
  const client = new Client();
  await client.connect();
  await client.end();
}

/** How many of them failed; each is logged as a web framework does. */
async function several(number, request) {
  let failed = 0;
  for (let i = 0; i < Number(number); i += 1) {
    try {
      await request();
      write("INFO", "200 /orders");
    } catch (error) {
      failed += 1;
      write("ERROR", "500 /orders", error);
    }
  }
  return failed;
}

const commands = {
  serve: (number) => several(number, serve),
  starve: (number) => several(number, starve),
  begin: (number) => several(number, begin),
  say: async (line) => write(line),
};

async function main() {
  await serve();
  console.log(JSON.stringify({ ready: process.pid }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [, name, rest] = line.match(/^(\S+) (.*)$/);
    try {
      console.log(JSON.stringify({ did: (await commands[name](rest)) ?? null }));
    } catch (error) {
      console.log(JSON.stringify({ failed: String(error) }));
    }
  }
  process.exit(0);
}

main();
