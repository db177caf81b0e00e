-- Schema 2: what the rules over many agents add up, and how much of their pools applications used day by day.

-- The newest levels of each agent, whole as they were told.
CREATE TABLE levels (
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    seen_at     INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    levels      TEXT NOT NULL,
    PRIMARY KEY (tenant, agent)
) STRICT, WITHOUT ROWID;
CREATE INDEX levels_by_age ON levels (received_at);

-- One row for each application's use of one server on one day in UTC. `counts` is a histogram of leased connections.
CREATE TABLE pool_use (
    tenant      TEXT NOT NULL,
    server      TEXT NOT NULL,
    application TEXT NOT NULL,
    day         INTEGER NOT NULL,
    samples     INTEGER NOT NULL,
    peak        INTEGER NOT NULL,
    peak_open   INTEGER NOT NULL,
    counts      TEXT NOT NULL,
    PRIMARY KEY (tenant, server, application, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX pool_use_by_day ON pool_use (day);
