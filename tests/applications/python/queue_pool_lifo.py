"""SQLAlchemy's QueuePool on psycopg2 with `pool_use_lifo`: last in, first out."""

import queue_pool
from queue_pool import connect

queue_pool.LAST_IN_FIRST_OUT = True
Pool = queue_pool.Pool

__all__ = ["Pool", "connect"]
