-- Schema 16: as what receivers know incidents.

-- The labels of the alert that an Alertmanager was told of last: it knows an alert by them, so they are what is refreshed and ended,
-- whatever is true of the incident and its agent by then. It goes with its incident.
CREATE TABLE heard (
    tenant   TEXT NOT NULL,
    incident TEXT NOT NULL,
    receiver TEXT NOT NULL,
    labels   TEXT NOT NULL,
    sum      INTEGER NOT NULL AS (row_sum('heard', tenant, incident, receiver, labels)) STORED,
    PRIMARY KEY (tenant, incident, receiver)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER heard_go AFTER DELETE ON incidents
BEGIN
    DELETE FROM heard WHERE tenant = OLD.tenant AND incident = OLD.id;
END;
