-- Schema 4: what agents did beyond their limits, by the code that it was refused with.

CREATE TABLE excesses (
    tenant  TEXT NOT NULL,
    agent   TEXT NOT NULL,
    "limit" TEXT NOT NULL,
    times   INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent, "limit")
) STRICT, WITHOUT ROWID;
