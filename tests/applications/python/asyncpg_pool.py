"""asyncpg's own pool: last in, first out, with reset statements at each return. Its loop runs in a thread of its own."""

import asyncio
import os
import threading

import asyncpg

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()


def wait(coroutine):
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


class Lease:
    def __init__(self, connection):
        self.connection = connection
        self.transaction = None

    def run(self, sql):
        row = wait(self.connection.fetchrow(sql))
        return tuple(row) if row else None

    def begin(self):
        self.transaction = self.connection.transaction()
        wait(self.transaction.start())

    def commit(self):
        if self.transaction:
            wait(self.transaction.commit())
            self.transaction = None

    def fileno(self):
        return self.connection._transport.get_extra_info("socket").fileno()


async def made(size, least):
    # It reads the server from libpq's variables, but not the application's name.
    name = {"application_name": os.environ["PGAPPNAME"]}
    return await asyncpg.create_pool(
        min_size=least, max_size=size, max_inactive_connection_lifetime=0, server_settings=name
    )


class Pool:
    def __init__(self, size, least):
        self.pool = wait(made(size, least))

    def take(self):
        async def acquire():
            return await self.pool.acquire(timeout=5)

        return Lease(wait(acquire()))

    def give(self, lease):
        async def release():
            await self.pool.release(lease.connection)

        wait(release())


def connect(application_name):
    return Lease(wait(asyncpg.connect(server_settings={"application_name": application_name})))
