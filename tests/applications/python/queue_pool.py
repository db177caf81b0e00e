"""SQLAlchemy's QueuePool on psycopg2: first in, first out."""

import psycopg2
from sqlalchemy import create_engine

LAST_IN_FIRST_OUT = False
DIALECT = "postgresql+psycopg2"


class Lease:
    def __init__(self, connection):
        self.connection = connection

    def run(self, sql):
        return tuple(self.connection.exec_driver_sql(sql).one())

    def listen(self):
        self.connection.exec_driver_sql("LISTEN orders")

    def begin(self):
        pass  # psycopg2 begins with the first statement

    def commit(self):
        self.connection.commit()

    def fileno(self):
        return self.connection.connection.dbapi_connection.fileno()


class Pool:
    def __init__(self, size, least, name=None):
        # libpq reads the server from its own variables. This pool opens on demand, whatever `least` says.
        self.engine = create_engine(
            f"{DIALECT}://",
            connect_args={"application_name": name} if name else {},
            pool_size=size,
            max_overflow=0,
            pool_timeout=5,
            pool_use_lifo=LAST_IN_FIRST_OUT,
            future=True,
        )

    def take(self):
        return Lease(self.engine.connect())

    def give(self, lease):
        lease.connection.close()


class Own:
    def __init__(self, connection):
        connection.autocommit = True
        self.cursor = connection.cursor()
        self.fileno = connection.fileno
        self.close = connection.close

    def run(self, sql):
        self.cursor.execute(sql)
        return self.cursor.fetchone() if self.cursor.description else None


def connect(application_name):
    return Own(psycopg2.connect("", application_name=application_name))
