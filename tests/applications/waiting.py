"""A web server whose requests need a connection of a pool of five, and may have to wait for one.

    waiting.py [--name NAME]        DATABASE_URL holds the pool's size (`?pool_size=5&max_overflow=0`), else it is 5, which nothing outside tells

    GET /work               begins a transaction and keeps it until `release`, with `?seconds=S` for so long
    GET /slow               waits until `release` and needs no connection
    GET /stream             becomes a WebSocket that receives and never answers
    GET /health, /metrics   the pool in JSON and as OpenMetrics

Same conversation as pooled.py, a line in, a line of JSON out: `release` lets every request go, `truth` counts those that
wait for a connection and the connections that are handed out.
"""

import argparse
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

arguments = argparse.ArgumentParser()
arguments.add_argument("--name", help="only there to be seen in the command line")
arguments.parse_args()

url = make_url(os.environ["DATABASE_URL"])
size, overflow = (int(url.query.get(key, usual)) for key, usual in (("pool_size", 5), ("max_overflow", 0)))
url = url.difference_update_query(["pool_size", "max_overflow"])
engine = create_engine(url, pool_size=size, max_overflow=overflow, pool_timeout=300)

released = threading.Event()
counting = threading.Lock()
waiting = 0


def count(change):
    global waiting
    with counting:
        waiting += change


def work(seconds):
    moment = released
    count(1)
    try:
        connection = engine.connect()
    finally:
        count(-1)
    with connection, connection.begin():
        connection.execute(text("SELECT count(*) FROM pg_class WHERE relname = 'a literal'"))
        moment.wait(seconds)


def truth():
    return {"waiting": waiting, "checked_out": engine.pool.checkedout()}


def health():
    # `callers` is a number that one may take for those in use: it counts who waits, too.
    callers = waiting + engine.pool.checkedout()
    pool = {"size": size, "callers": callers, "checked_out": engine.pool.checkedout(), "waiting": waiting, "limit": size + overflow}
    return {"status": "ok", "pool": {**pool, "text": engine.pool.status()}}


def metrics():
    numbers = {"size": size, "max_overflow": overflow, "checked_out": engine.pool.checkedout(), "waiting": waiting}
    lines = [f"# TYPE app_db_pool_{name} gauge\napp_db_pool_{name} {value}\n" for name, value in numbers.items()]
    return "".join(lines) + "# EOF\n"


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked = urlparse(self.path)
        seconds = parse_qs(asked.query).get("seconds")
        if asked.path == "/stream":
            return self.stream()
        answers = {"/health": lambda: json.dumps(health()), "/metrics": metrics}
        if asked.path == "/work":
            work(float(seconds[0]) if seconds else None)
        elif asked.path == "/slow":
            released.wait()
        body = answers.get(asked.path, lambda: "done")().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except BrokenPipeError:
            pass  # who asked is gone

    def stream(self):
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        while self.connection.recv(4096):
            pass
        self.close_connection = True

    def log_message(self, *_):
        pass


def release():
    global released
    ended, released = released, threading.Event()
    ended.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def main():
    # Opened at once, as under load.
    connections = [engine.connect() for _ in range(size)]
    for it in connections:
        it.close()
    server = Server(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"did": "start", "port": server.server_address[1]}), flush=True)
    for line in sys.stdin:
        done = release() if line.strip() == "release" else truth()
        print(json.dumps({"did": done}), flush=True)


main()
