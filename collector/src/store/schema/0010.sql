-- Schema 10: who owns an incident, and until when.

-- When `over_at` is set, whoever was told of the incident was told again, if it still fired.
CREATE TABLE acknowledgements (
    tenant     TEXT NOT NULL,
    incident   TEXT NOT NULL,
    id         TEXT NOT NULL,
    owner      TEXT NOT NULL,
    note       TEXT,
    severity   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    ends_at    INTEGER NOT NULL,
    taken_at   INTEGER,
    over_why   TEXT,
    over_at    INTEGER,
    sum        INTEGER NOT NULL AS (row_sum(
        'acknowledgements', tenant, incident, id, owner, note, severity, created_at, ends_at, taken_at, over_why,
        over_at
    )) STORED,
    PRIMARY KEY (tenant, incident, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX acknowledgements_live ON acknowledgements (tenant, incident) WHERE over_at IS NULL;
CREATE INDEX acknowledgements_by_end ON acknowledgements (over_at) WHERE over_at IS NOT NULL;
