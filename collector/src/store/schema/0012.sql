-- Schema 12: what returns again and again.

-- One row for each incident that has returned. `returns` are the latest, `since` is there while it flaps, `calm_since` while it has gone
-- away for now.
CREATE TABLE flaps (
    tenant     TEXT NOT NULL,
    incident   TEXT NOT NULL,
    returns    TEXT NOT NULL,
    since      INTEGER,
    calm_since INTEGER,
    sum        INTEGER NOT NULL AS (row_sum('flaps', tenant, incident, returns, since, calm_since)) STORED,
    PRIMARY KEY (tenant, incident)
) STRICT, WITHOUT ROWID;
