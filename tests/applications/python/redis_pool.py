"""redis-py's BlockingConnectionPool, for Redis and Valkey. It is a stack, or rotates: what is used last is taken first."""

import os

from redis import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection
from redis.connection import parse_url

URL = os.environ["REDIS_URL"]
# Seconds of work mean nothing here: each command takes as long as it takes.
ASK = "GET orders {}"
# What a connection of its own is for.
OWN = {
    "subscribe": ["SUBSCRIBE orders"],
    "psubscribe": ["PSUBSCRIBE ord*"],
    "monitor": ["MONITOR"],
    "xread": ["XREAD BLOCK 0 STREAMS events $"],
}
BLOCKING = ("BLPOP", "XREAD")


class Client:
    """One connection, with the number that the server gave it."""

    def __init__(self, connection):
        self.connection = connection
        self.in_transaction = False

    def ask(self, *words):
        self.connection.send_command(*words)
        return self.connection.read_response()

    def number(self):
        if not hasattr(self.connection, "number"):
            self.connection.number = self.ask("CLIENT", "ID")
        return self.connection.number

    def run(self, text):
        number, words = self.number(), text.split()
        if words[0] == "GET":
            self.ask("GET", words[1])
        elif words[0] in BLOCKING:
            # Nobody ever pushes: its answer does not come.
            self.connection.send_command(*words)
        else:
            self.ask(*words)
        return (number,)

    def begin(self):
        self.number()
        self.ask("MULTI")
        self.in_transaction = True

    def commit(self):
        if self.in_transaction:
            self.ask("EXEC")
        self.in_transaction = False

    def block(self):
        self.run("BLPOP jobs 0")

    def fileno(self):
        return self.connection._sock.fileno()

    def close(self):
        self.connection.disconnect()


class Pool:
    def __init__(self, size, least):
        self.pool = BlockingConnectionPool.from_url(URL, max_connections=size, timeout=5)

    def take(self):
        return Client(self.pool.get_connection("_"))

    def give(self, lease):
        self.pool.release(lease.connection)


def connect(application_name):
    options = parse_url(URL)
    kind = options.pop("connection_class", Connection)
    assert kind in (Connection, SSLConnection, UnixDomainSocketConnection)
    connection = kind(client_name=application_name, **options)
    connection.connect()
    return Client(connection)
