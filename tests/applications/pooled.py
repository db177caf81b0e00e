"""A web application's data layer: SQLAlchemy's own pool on PostgreSQL, with faults on command.

Commands come on standard input, one a line; each is answered on standard output with one line of JSON. The end of
standard input ends the application, so it never outlives its test.

    leak N      N sessions run a SELECT and are never closed: idle in transaction
    abort N     N sessions run a statement that fails and are never rolled back
    hold N      N sessions commit and are kept: leased, idle, outside a transaction
    repair      closes every session of the three commands above
    traffic R   R correct requests a second from now on (0 ends it)
    churn R     R requests a second, each on a connection of its own (0 ends it)
    fork N      N workers that inherit every connection of the pool, as those of a server that loads before it forks
    end PID     one of them is killed
    undumpable  not even its own user may look into it any more
    served      how many requests were served and how many failed

The pool's size stands in DATABASE_URL (`?pool_size=20&max_overflow=10`), where many deployments keep it.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading

import psycopg2
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import sessionmaker

url = make_url(os.environ["DATABASE_URL"])
size = int(url.query.get("pool_size", 20))
overflow = int(url.query.get("max_overflow", 0))
url = url.difference_update_query(["pool_size", "max_overflow"])
engine = create_engine(url, pool_size=size, max_overflow=overflow, pool_timeout=2)
Session = sessionmaker(engine)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4

kept = []
counts = {"served": 0, "failed": 0}
counting = threading.Lock()
rates = {}


def keep(owner, connection):
    """Forgets to close `owner`, and tells what a correct observer must say of its connection."""
    kept.append(owner)
    driver = connection.connection.dbapi_connection
    with socket.socket(fileno=os.dup(driver.fileno())) as end:
        port = end.getsockname()[1]
    return {"pid": os.getpid(), "fd": driver.fileno(), "backend": driver.info.backend_pid, "port": port}


def leak():
    session = Session()
    session.execute(text("SELECT pg_backend_pid(), 'a literal that must not leave this host'"))
    return keep(session, session.connection())


def abort():
    session = Session()
    row = keep(session, session.connection())
    try:
        session.execute(text("SELECT 1 / 0"))
    except Exception:
        return row


def hold():
    # A Session gives its connection back at the end of a transaction; a Connection keeps it.
    connection = engine.connect()
    with connection.begin():
        connection.execute(text("SELECT 1"))
    return keep(connection, connection)


def repair():
    count = len(kept)
    while kept:
        try:
            kept.pop().close()
        except Exception:
            pass  # the server may have closed it first; the pool throws such a connection away
    return count


def serve():
    with Session() as session:
        session.execute(text("SELECT count(*) FROM pg_class"))
        session.commit()


def connect_each_time():
    own = psycopg2.connect(host=url.host, port=url.port, user=url.username, password=url.password, dbname=url.database)
    try:
        own.cursor().execute("SELECT 1")
    finally:
        own.close()


def repeat(name, request):
    """Calls `request` at the rate asked for, until it is 0."""
    wake = threading.Event()
    while rates.get(name):
        try:
            request()
            key = "served"
        except Exception:
            key = "failed"
        with counting:
            counts[key] += 1
        wake.wait(1 / rates[name] if rates[name] else 0)


def at_rate(name, request, rate):
    was = rates.get(name, 0)
    rates[name] = rate
    if rate and not was:
        threading.Thread(target=repeat, args=(name, request), daemon=True).start()
    return rate


def fill():
    """Opens the whole pool, as a busy morning does, and gives everything back."""
    connections = [engine.connect() for _ in range(size)]
    for connection in connections:
        connection.close()
    return size


def fork():
    """A worker that does nothing with what it inherited. It ends with its parent."""
    pid = os.fork()
    if pid == 0:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[0]


commands = {
    "leak": lambda n: [leak() for _ in range(int(n))],
    "abort": lambda n: [abort() for _ in range(int(n))],
    "hold": lambda n: [hold() for _ in range(int(n))],
    "repair": lambda _: repair(),
    "traffic": lambda n: at_rate("traffic", serve, float(n)),
    "fork": lambda n: [fork() for _ in range(int(n))],
    "end": lambda pid: end(int(pid)),
    "undumpable": lambda _: ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0),
    "churn": lambda n: at_rate("churn", connect_each_time, float(n)),
    "served": lambda _: dict(counts),
}

fill()
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, _, number = line.strip().partition(" ")
    try:
        answer = {"did": commands[name](number)}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
