"""A small web server and its worst habits, on command. Same conversation as pooled.py: a line in, a line of JSON out.

    web.py [--port P] [--tls CERTIFICATE KEY] [--imports SECONDS] [--name NAME] [--database]

With --database each page asks the server of libpq's environment variables over a pool of SQLAlchemy, and answers 500 when that fails.

    status S      answers with status S from now on
    delay S       waits S seconds before each answer
    body TEXT     answers with this body
    descriptors N opens N descriptors; limit N makes N the soft limit of descriptors
    memory M      holds M MiB of touched memory
    zombies N     starts N children that end and are not waited for; reap waits for them

The port is shared (SO_REUSEPORT), so a successor can listen before its predecessor ends, as in a rolling restart.
"""

import argparse
import json
import os
import resource
import socket
import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

arguments = argparse.ArgumentParser()
arguments.add_argument("--port", type=int, default=0)
arguments.add_argument("--tls", nargs=2)
arguments.add_argument("--imports", type=float, default=0, help="seconds before it listens, as real applications take")
arguments.add_argument("--name", help="only there to be seen in the command line")
arguments.add_argument("--database", action="store_true")
arguments = arguments.parse_args()

engine = None
if arguments.database:
    import sqlalchemy

    # A connection that broke is noticed before a page is made of it.
    engine = sqlalchemy.create_engine("postgresql+psycopg2://", pool_size=3, pool_pre_ping=True)

answer = {"status": 200, "delay": 0.0, "body": '{"database": {"ok": true}}'}
pause = threading.Event()
held = []
children = []


class Page(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        pause.wait(answer["delay"])
        body = answer["body"].encode()
        self.send_response(self.status())
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def status(self):
        try:
            if engine is not None:
                with engine.connect() as connection:
                    connection.execute(sqlalchemy.text("SELECT 1"))
        except sqlalchemy.exc.OperationalError:
            return 500
        return answer["status"]

    def log_message(self, *_):
        pass


class SharedPort(ThreadingHTTPServer):
    daemon_threads = True

    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]


def descriptors(number):
    held.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(int(number)))
    return len(os.listdir("/proc/self/fd"))


def limit(number):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(number), hard))
    return int(number)


def release(_):
    while held:
        it = held.pop()
        if isinstance(it, int):
            os.close(it)
    return len(held)


def memory(mebibytes):
    held.append(bytearray(os.urandom(4096)) * (int(mebibytes) * 256))
    return int(mebibytes)


def zombies(number):
    for _ in range(int(number)):
        child = os.posix_spawn("/bin/true", ["true"], {})
        children.append(child)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and stays
    return list(children)


def reap(_):
    while children:
        os.waitpid(children.pop(), 0)
    return 0


def setting(key, kind):
    def change(value):
        answer[key] = kind(value)
        return answer[key]

    return change


commands = {
    "status": setting("status", int),
    "delay": setting("delay", float),
    "body": setting("body", str),
    "descriptors": descriptors,
    "limit": limit,
    "release": release,
    "memory": memory,
    "zombies": zombies,
    "reap": reap,
}

pause.wait(arguments.imports)
server = SharedPort(("127.0.0.1", arguments.port), Page)
if arguments.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*arguments.tls)
    server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(json.dumps({"ready": os.getpid(), "port": server.server_port}), flush=True)
for line in sys.stdin:
    name, _, value = line.strip().partition(" ")
    try:
        reply = {"did": commands[name](value)}
    except Exception as error:
        reply = {"failed": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)
os._exit(0)
