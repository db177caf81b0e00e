-- Schema 11: how far escalations have come.

-- One row for each receiver that a route with steps told of an incident that fires. `since` is when time began to count, `steps` what
-- became of those whose time has come.
CREATE TABLE escalations (
    tenant   TEXT NOT NULL,
    incident TEXT NOT NULL,
    receiver TEXT NOT NULL,
    since    INTEGER NOT NULL,
    steps    TEXT NOT NULL,
    sum      INTEGER NOT NULL AS (row_sum('escalations', tenant, incident, receiver, since, steps)) STORED,
    PRIMARY KEY (tenant, incident, receiver)
) STRICT, WITHOUT ROWID;
