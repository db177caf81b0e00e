-- Schema 12: what returns again and again.

-- One row for each incident that has returned. `returns` are the latest, `since` and `worst` are there while it flaps, `calm_since` while it
-- has gone away for now. It goes with its incident.
CREATE TABLE flaps (
    tenant     TEXT NOT NULL,
    incident   TEXT NOT NULL,
    returns    TEXT NOT NULL,
    since      INTEGER,
    calm_since INTEGER,
    worst      TEXT,
    sum        INTEGER NOT NULL AS (row_sum('flaps', tenant, incident, returns, since, calm_since, worst)) STORED,
    PRIMARY KEY (tenant, incident)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER flaps_go AFTER DELETE ON incidents
BEGIN
    DELETE FROM flaps WHERE tenant = OLD.tenant AND incident = OLD.id;
END;
