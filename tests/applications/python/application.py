"""What all Python applications share: commands on standard input, traffic, and the truth in a file (see ../README.md).

A library is a module with `connect(application_name)`, a connection of its own, and a class `Pool(size, least)` with
`take()` and `give(lease)`. A lease or connection has `run(sql)` (the first row), `begin()`, `commit()` and `fileno()`.
"""

import argparse
import importlib
import json
import os
import random
import socket
import sys
import threading
import time

import inbound

ASK_POSTGRES = "SELECT pg_backend_pid() FROM pg_sleep({})"
WORKERS = 6

arguments = argparse.ArgumentParser()
arguments.add_argument("--name", help="only there to be seen in the command line")
arguments.add_argument("--truth", required=True)
arguments.add_argument("--size", type=int, required=True)
arguments.add_argument("--least", type=int, required=True)
arguments.add_argument("--library", required=True)
arguments = arguments.parse_args()
library = importlib.import_module(arguments.library)
# The number of the session, after so many seconds.
ASK = getattr(library, "ASK", ASK_POSTGRES)

lock = threading.Lock()
connections = {}
kept = []
own = []
counts = {"served": 0, "failed": 0, "waiting": 0, "churned": 0}
rates = {}
pools = {"main": library.Pool(arguments.size, arguments.least)}


def leased(pool, lease, seconds, why):
    """Uses the lease for so long, and notes it under its descriptor."""
    (backend,) = lease.run(ASK.format(seconds))
    fd = lease.fileno()
    with socket.socket(fileno=os.dup(fd)) as end:
        port = 0 if end.family == socket.AF_UNIX else end.getsockname()[1]
    with lock:
        known = connections.get(fd, {"uses": 0})
        connections[fd] = {
            "pool": pool,
            "port": port,
            "fd": fd,
            "backend": backend,
            "leased": True,
            "kept": why,
            "since": time.time(),
            "uses": known["uses"] + 1,
        }
    return fd


def returned(fd):
    with lock:
        connections[fd].update(leased=False, kept="", since=time.time())


def taken(pool):
    """A lease of `pool`; whoever waits for one is counted."""
    with lock:
        counts["waiting"] += 1
    try:
        return pools[pool].take()
    finally:
        with lock:
            counts["waiting"] -= 1


def serve(pool, seconds=0.004):
    lease = taken(pool)
    try:
        fd = leased(pool, lease, seconds, "")
        lease.commit()
        returned(fd)
    finally:
        pools[pool].give(lease)


def fill(pool, number):
    leases = [taken(pool) for _ in range(number)]
    fds = [leased(pool, lease, 0, "") for lease in leases]
    for lease, fd in zip(leases, fds):
        lease.commit()
        returned(fd)
        pools[pool].give(lease)
    return number


def keep(number, why):
    first = len(kept)
    for _ in range(number):
        lease = taken("main")
        if why == "leak":
            lease.begin()
        fd = leased("main", lease, 0, why)
        if why == "keep":
            lease.commit()
        if why == "block":
            lease.block()
        kept.append((lease, fd))
    return [connections[fd]["port"] for _, fd in kept[first:]]


def dedicate(number, what):
    """Takes connections of the pool for good, each for a purpose of its own, and commits: no later statement shows it."""
    for at in range(number):
        lease = taken("main")
        fd = leased("main", lease, 0, what)
        if what == "listen":
            lease.listen()
        else:
            lease.run(f"SELECT pg_advisory_lock({100 + at})")
        lease.commit()
        kept.append((lease, fd))
        threading.Event().wait(1.5)
    return number


def repair():
    count = len(kept)
    while kept:
        lease, fd = kept.pop()
        try:
            lease.commit()
        except Exception as error:
            # The server may have ended it first; the pool throws such a connection away.
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        returned(fd)
        pools["main"].give(lease)
    return count


def work(pool, number, request):
    """One of the threads that share a rate."""
    wake = threading.Event()
    due = time.monotonic() + number / max(rates[pool], 0.1)
    while rates.get(pool):
        wake.wait(max(0.0, due - time.monotonic()))
        # People do not come by the clock; a steady beat would always or never meet the agent's own.
        due = max(due + random.uniform(0.2, 1.8) * WORKERS / max(rates[pool], 0.1), time.monotonic() - 1)
        try:
            request(pool)
            key = "served"
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            key = "failed"
        with lock:
            counts[key] += 1


def at_rate(pool, rate, request):
    was = rates.get(pool, 0)
    rates[pool] = rate
    if rate and not was:
        for number in range(WORKERS):
            threading.Thread(target=work, args=(pool, number, request), daemon=True).start()
    return rate


def traffic(pool, rate):
    if pool not in pools:
        name = [os.environ["PGAPPNAME"] + "-apart"] if pool == "apart" else []
        pools[pool] = library.Pool(arguments.size, arguments.least, *name)
        fill(pool, arguments.size)
    return at_rate(pool, rate, serve)


def burst(number, seconds):
    threads = [threading.Thread(target=serve, args=("main", seconds)) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return number


def connect_each_time(_):
    connection = library.connect(os.environ["PGAPPNAME"])
    connection.run("SELECT 1")
    connection.close()
    with lock:
        counts["churned"] += 1


def by_itself(why, name, statements):
    connection = library.connect(name)
    fd = leased("own", connection, 0, why)
    for statement in statements:
        connection.run(statement)
    own.append(connection)
    return connections[fd]["port"]


def tell():
    """Writes the truth for as long as the process lives."""
    wake = threading.Event()
    with open(arguments.truth, "a") as file:
        while True:
            with lock:
                line = {"at": time.time(), "waiting": counts["waiting"], "connections": list(connections.values())}
                text = json.dumps(line)
            print(text, file=file, flush=True)
            wake.wait(0.2)


commands = {
    "fill": lambda n: fill("main", int(n)),
    "traffic": lambda rate: traffic("main", float(rate)),
    "second": lambda rate: traffic("second", float(rate)),
    "apart": lambda rate: traffic("apart", float(rate)),
    "leak": lambda n: keep(int(n), "leak"),
    "keep": lambda n: keep(int(n), "keep"),
    "block": lambda n: keep(int(n), "block"),
    "repair": repair,
    "burst": lambda n, seconds: burst(int(n), float(seconds)),
    "listen": lambda: by_itself("listen", os.environ["PGAPPNAME"], ["LISTEN orders"]),
    "lock": lambda: by_itself("lock", os.environ["PGAPPNAME"], ["SELECT pg_advisory_lock(7)"]),
    "dedicate": lambda n, what: dedicate(int(n), what),
    "batch": lambda name="nightly-batch": by_itself("batch", name, ["BEGIN", "SELECT count(*) FROM pg_class"]),
    "churn": lambda rate: at_rate("none", float(rate), connect_each_time),
    "websockets": lambda n: inbound.websockets(int(n)),
    "http": lambda n: inbound.requests(int(n)),
    "served": lambda: {key: counts[key] for key in ("served", "failed", "churned")},
}

for why, statements in getattr(library, "OWN", {}).items():
    commands[why] = lambda why=why, statements=statements: by_itself(why, os.environ["PGAPPNAME"], statements)

fill("main", arguments.least)
threading.Thread(target=tell, daemon=True).start()
print(json.dumps({"ready": os.getpid()}), flush=True)
for line in sys.stdin:
    name, *values = line.split()
    try:
        answer = {"did": commands[name](*values)}
    except Exception as error:
        answer = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), flush=True)
os._exit(0)
