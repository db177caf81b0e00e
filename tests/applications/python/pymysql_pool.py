"""SQLAlchemy's QueuePool on PyMySQL, for MySQL and MariaDB."""

import os

import pymysql
from sqlalchemy import create_engine

# It reads a table, so that there is a transaction which the server knows of.
ASK = "SELECT CONNECTION_ID() FROM orders WHERE SLEEP({}) = 0"


def arguments():
    place = {"host": os.environ["MYSQL_HOST"], "port": int(os.environ["MYSQL_PORT"])}
    if "MYSQL_SOCKET" in os.environ:
        place = {"unix_socket": os.environ["MYSQL_SOCKET"]}
    if "MYSQL_CA" in os.environ:
        place["ssl"] = {"ca": os.environ["MYSQL_CA"], "check_hostname": False}
    who = {"user": os.environ["MYSQL_USER"], "password": os.environ["MYSQL_PASSWORD"]}
    return {**place, **who, "database": os.environ["MYSQL_DATABASE"]}


class Lease:
    def __init__(self, connection):
        self.connection = connection

    def run(self, sql):
        return tuple(self.connection.exec_driver_sql(sql.replace("%", "%%")).one())

    def begin(self):
        pass  # PyMySQL begins with the first statement

    def commit(self):
        self.connection.commit()

    def fileno(self):
        return self.connection.connection.dbapi_connection._sock.fileno()


class Pool:
    def __init__(self, size, least):
        self.engine = create_engine(
            "mysql+pymysql://", connect_args=arguments(), pool_size=size, max_overflow=0, pool_timeout=5, future=True
        )

    def take(self):
        return Lease(self.engine.connect())

    def give(self, lease):
        lease.connection.close()


class Own:
    def __init__(self, connection):
        connection.autocommit(True)
        self.cursor = connection.cursor()
        self.fileno = connection._sock.fileno
        self.close = connection.close

    def run(self, sql):
        self.cursor.execute(sql)
        return self.cursor.fetchone() if self.cursor.description else None


def connect(application_name):
    return Own(pymysql.connect(**arguments()))
