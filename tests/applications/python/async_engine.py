"""SQLAlchemy's asyncio engine on asyncpg, as `DATABASE_URL` says, else libpq's variables. Its loop runs in a thread of its own."""

import os

from asyncpg_pool import Lease as Plain
from asyncpg_pool import connect, wait
from sqlalchemy.ext.asyncio import create_async_engine

__all__ = ["Pool", "connect"]


class Lease(Plain):
    def run(self, sql):
        async def row():
            return (await self.connection.exec_driver_sql(sql)).one()

        return tuple(wait(row()))

    def begin(self):
        pass  # the engine begins with the first statement

    def commit(self):
        wait(self.connection.commit())

    def fileno(self):
        async def raw():
            return (await self.connection.get_raw_connection()).driver_connection

        return wait(raw())._transport.get_extra_info("socket").fileno()


class Pool:
    def __init__(self, size, least):
        url = os.environ.get("DATABASE_URL")
        # asyncpg reads the server from libpq's variables, but not the application's name.
        named = {} if url else {"server_settings": {"application_name": os.environ["PGAPPNAME"]}}
        self.engine = create_async_engine(
            url or "postgresql+asyncpg://", connect_args=named, pool_size=size, max_overflow=0, pool_timeout=5
        )

    def take(self):
        async def connected():
            return await self.engine.connect()

        return Lease(wait(connected()))

    def give(self, lease):
        wait(lease.connection.close())
