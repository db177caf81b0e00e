"""A worker that writes a log of its own, with the errors of real libraries as those libraries word them.

    failing.py --name NAME --log FILE

The server stands in libpq's environment variables. Commands as in pooled.py, each N times:

    starve N      a request that waits for SQLAlchemy's QueuePool of one connection, which another one keeps
    serve N       the same while nobody keeps it
    queue N       the same with psycopg_pool, whose one connection somebody keeps
    begin N       a connection more to the server, of an engine of its own
    ask N         a statement that asyncpg prepares, each one another, on the one connection of this worker
    overlap N     two tasks on one connection of asyncpg
    lazy N        a connection of SQLAlchemy's asyncio engine used outside of its greenlet
    abort N       a statement in a transaction that failed already
    write N       a write in a transaction that may only read
    say TEXT      a line as it is, with the level that it begins with

Orders have a pool of their own, of eight connections. Each is a request with one statement:

    fail          it raises, and its session is closed only where it does not
    tidy          it raises the same, and its session is closed whatever happens
    forget        it raises nothing, and its session is not closed
    repair        closes what is left open; how many that were

`fail` and `forget` answer with the connection that is left open.
"""

import argparse
import asyncio
import json
import logging
import logging.handlers
import os
import socket
import sys

import asyncpg
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

arguments = argparse.ArgumentParser()
arguments.add_argument("--name", required=True)
arguments.add_argument("--log", required=True)
arguments = arguments.parse_args()

# It opens the file again when it was renamed, and appends: a truncated one is continued at its new end.
handler = logging.handlers.WatchedFileHandler(arguments.log)
handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
log = logging.getLogger(arguments.name)
log.addHandler(handler)
log.setLevel(logging.DEBUG)

pool = create_engine("postgresql+psycopg2://", pool_size=1, max_overflow=0, pool_timeout=0.05)
Orders = sessionmaker(create_engine("postgresql+psycopg2://", pool_size=8, max_overflow=0))
unfinished = []
place = (os.environ["PGUSER"], os.environ["PGPASSWORD"], os.environ["PGHOST"], os.environ["PGPORT"])
asynchronous = create_async_engine("postgresql+asyncpg://%s:%s@%s:%s/" % place + os.environ["PGDATABASE"])
loop = asyncio.new_event_loop()
worker = None
second = None
statements = 0


def serve():
    with pool.connect() as connection:
        connection.execute(text("SELECT 1"))


def starve():
    with pool.connect():
        serve()


def queue():
    global second
    second = second or ConnectionPool("", min_size=1, max_size=1, timeout=5)
    with second.connection(), second.connection(timeout=0.05):
        pass


def begin_another():
    engine = create_engine("postgresql+psycopg2://")
    with engine.connect():
        pass
    engine.dispose()


def ask():
    global worker, statements
    worker = worker or loop.run_until_complete(asyncpg.connect())
    statements += 1
    loop.run_until_complete(worker.fetchrow(f"SELECT {statements}"))


def overlap():
    async def both():
        connection = await asyncpg.connect()
        tasks = [asyncio.ensure_future(connection.fetchrow("SELECT pg_sleep(0.05)")) for _ in range(2)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()
        for one in done:
            if isinstance(one, Exception):
                raise one

    loop.run_until_complete(both())


def lazy():
    asynchronous.sync_engine.connect()


def abort():
    with pool.connect() as connection, connection.begin():
        try:
            connection.execute(text("SELECT 1 / 0"))
        except Exception:
            pass  # as code does that goes on after an error
        connection.execute(text("SELECT 1"))


def write():
    with pool.connect() as connection, connection.begin():
        connection.execute(text("SET TRANSACTION READ ONLY"))
        connection.execute(text("CREATE TABLE orders (id int)"))


def several(number, request):
    """How many of them failed; each is logged as a web framework does."""
    failed = 0
    for _ in range(int(number)):
        try:
            request()
            log.info("200 /orders")
        except Exception:
            failed += 1
            log.exception("500 /orders")
    return failed


class OutOfStock(Exception):
    pass


def order(session, raises):
    session.execute(text("SELECT pg_backend_pid(), 'canary of a customer'"))
    if raises:
        raise OutOfStock(f"article {statements} of 'canary of a customer' has none left")


def begin():
    """A session of a request that is not over."""
    session = Orders()
    unfinished.append(session)
    return session


def fail():
    session = begin()
    order(session, raises=True)
    unfinished.remove(session)
    session.close()


def tidy():
    with Orders() as session:
        order(session, raises=True)


def forget():
    order(begin(), raises=False)


def request(handler):
    """What a web framework does with a handler; then the connection that it left open."""
    global statements
    statements += 1
    before = len(unfinished)
    try:
        handler()
        log.info("200 /orders")
    except OutOfStock:
        log.exception("500 /orders")
    if len(unfinished) == before:
        return None
    driver = unfinished[-1].connection().connection.dbapi_connection
    with socket.socket(fileno=os.dup(driver.fileno())) as end:
        port = end.getsockname()[1]
    return {"pid": os.getpid(), "fd": driver.fileno(), "backend": driver.info.backend_pid, "port": port}


def repair():
    count = len(unfinished)
    while unfinished:
        unfinished.pop().close()
    return count


def say(line):
    level, _, words = line.partition(" ")
    log.log(logging.getLevelName(level), words)
    return line


def answer_to(name, rest):
    if name in handlers:
        return request(handlers[name])
    if name in ("say", "repair"):
        return say(rest) if name == "say" else repair()
    return several(rest, requests[name])


handlers = {"fail": fail, "tidy": tidy, "forget": forget}
requests = {"starve": starve, "serve": serve, "ask": ask, "overlap": overlap, "lazy": lazy}
requests.update(abort=abort, write=write, queue=queue, begin=begin_another)
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, _, rest = line.strip().partition(" ")
    try:
        answer = {"did": answer_to(name, rest)}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
