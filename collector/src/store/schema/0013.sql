-- Schema 13: which servers are used from where.

-- One row for each agent that told of a pool or asks a server; `edges` by the identity of a server, as its sockets said within a day.
CREATE TABLE dependencies (
    tenant  TEXT NOT NULL,
    agent   TEXT NOT NULL,
    edges   TEXT NOT NULL,
    seen_at INTEGER NOT NULL,
    sum     INTEGER NOT NULL AS (row_sum('dependencies', tenant, agent, edges, seen_at)) STORED,
    PRIMARY KEY (tenant, agent)
) STRICT, WITHOUT ROWID;
