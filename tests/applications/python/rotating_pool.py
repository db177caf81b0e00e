"""psycopg_pool's ConnectionPool on psycopg 3: it rotates."""

import psycopg
from psycopg_pool import ConnectionPool


class Lease:
    def __init__(self, connection):
        self.connection = connection

    def run(self, sql):
        cursor = self.connection.execute(sql)
        return cursor.fetchone() if cursor.description else None

    def begin(self):
        pass  # psycopg begins with the first statement

    def commit(self):
        self.connection.commit()

    def fileno(self):
        return self.connection.fileno()


class Pool:
    def __init__(self, size, least, name=None):
        named = {"application_name": name} if name else {}
        self.pool = ConnectionPool("", min_size=least, max_size=size, timeout=5, kwargs=named)
        self.pool.wait()

    def take(self):
        return Lease(self.pool.getconn())

    def give(self, lease):
        self.pool.putconn(lease.connection)


def connect(application_name):
    return Lease(psycopg.connect("", autocommit=True, application_name=application_name))
