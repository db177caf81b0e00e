"""A worker that shows its secrets wherever an application can: in its command line, environment, sessions and statements.

    indiscreet.py --name NAME [ANYTHING ...]        DATABASE_URL is its server

Commands as in pooled.py, each with one JSON value:

    session {"name": APPLICATION_NAME, "statements": [...]}    a transaction that runs them and stays open
    fails STATEMENT                                             what the server answers to it; nothing stays open
    waits STATEMENT                                             the same in a thread, in a transaction that stays open
"""

import json
import os
import sys
import threading

import psycopg2

kept = []


def connect(name="indiscreet"):
    # What SQLAlchemy's pool would be told is none of the server's parameters.
    connection = psycopg2.connect(os.environ["DATABASE_URL"].split("?")[0], application_name=name)
    kept.append(connection)
    return connection


def session(it):
    cursor = connect(it["name"]).cursor()
    for statement in it["statements"]:
        cursor.execute(statement)
    return len(kept)


def fails(statement):
    connection = connect()
    try:
        connection.cursor().execute(statement)
    except psycopg2.Error as error:
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    finally:
        connection.close()


def waits(statement):
    cursor = connect().cursor()
    threading.Thread(target=cursor.execute, args=(statement,), daemon=True).start()
    return True


commands = {"session": session, "fails": fails, "waits": waits}
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, _, value = line.strip().partition(" ")
    try:
        reply = {"did": commands[name](json.loads(value))}
    except Exception as error:
        reply = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)
os._exit(0)
