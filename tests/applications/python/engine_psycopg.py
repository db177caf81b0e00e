"""SQLAlchemy 2's QueuePool on psycopg 3: first in, first out."""

import queue_pool
from rotating_pool import connect

queue_pool.DIALECT = "postgresql+psycopg"
Pool = queue_pool.Pool

__all__ = ["Pool", "connect"]
