"""A worker whose transactions wait for one another, fail, or stand on a server that was superseded.

    transactions.py --name NAME

A pool of five of SQLAlchemy on the server of libpq's environment variables. Commands as in pooled.py:

    prepare       makes the table, with rows 1 and 2
    hold ID       changes a row in a transaction that stays open
    want ID       the same at once in a thread, which waits if it must, and commits
    deadlock      two transactions take both rows in different order; how many of them failed
    fail          a statement that fails, in a transaction that stays open
    release       rolls back what is open
    commit N      N transactions that are committed
    rollback N    N transactions that are rolled back
    write         one row through each connection of the pool; how many of them failed
    reconnect     throws the pool away and opens a new one
"""

import argparse
import json
import os
import sys
import threading

from sqlalchemy import create_engine, text

arguments = argparse.ArgumentParser()
arguments.add_argument("--name", help="only there to be seen in the command line")
arguments.parse_args()

SIZE = 5
CHANGE = text("UPDATE accounts SET balance = balance + 1 WHERE id = :id")
engine = create_engine("postgresql+psycopg2://", pool_size=SIZE, max_overflow=0, pool_timeout=30, future=True)
kept = []


def prepare():
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE accounts (id int PRIMARY KEY, balance int NOT NULL)"))
        connection.execute(text("INSERT INTO accounts VALUES (1, 0), (2, 0)"))


def hold(row):
    connection = engine.connect()
    kept.append(connection)
    connection.execute(CHANGE, {"id": row})


def change(row):
    with engine.begin() as connection:
        connection.execute(CHANGE, {"id": row})


def want(row):
    threading.Thread(target=change, args=(row,), daemon=True).start()


def deadlock():
    both = threading.Barrier(2)
    failed = []

    def take(rows):
        try:
            with engine.begin() as connection:
                connection.execute(CHANGE, {"id": rows[0]})
                both.wait(10)
                connection.execute(CHANGE, {"id": rows[1]})
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed.append(error)

    threads = [threading.Thread(target=take, args=(rows,)) for rows in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failed)


def fail():
    connection = engine.connect()
    kept.append(connection)
    try:
        connection.execute(text("SELECT 1 / 0"))
    except Exception:
        pass


def release():
    while kept:
        kept.pop().close()


def several(number, ends):
    for _ in range(number):
        with engine.connect() as connection:
            connection.execute(text("SELECT count(*) FROM accounts"))
            getattr(connection, ends)()


def write():
    connections = [engine.connect() for _ in range(SIZE)]
    failed = 0
    for connection in connections:
        try:
            connection.execute(text("INSERT INTO accounts SELECT max(id) + 1, 0 FROM accounts"))
            connection.commit()
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            failed += 1
            connection.rollback()
        connection.close()
    return failed


def fill():
    for connection in [engine.connect() for _ in range(SIZE)]:
        connection.close()


def reconnect():
    engine.dispose()
    fill()


commands = {
    "prepare": prepare,
    "hold": lambda row: hold(int(row)),
    "want": lambda row: want(int(row)),
    "deadlock": deadlock,
    "fail": fail,
    "release": release,
    "commit": lambda number: several(int(number), "commit"),
    "rollback": lambda number: several(int(number), "rollback"),
    "write": write,
    "reconnect": reconnect,
}

fill()
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, *values = line.split()
    try:
        answer = {"did": commands[name](*values)}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
