-- Schema 8: silences, and what they hold back.

-- When `over_at` is set, what it held back was decided anew.
CREATE TABLE silences (
    tenant     TEXT NOT NULL,
    id         TEXT NOT NULL,
    matchers   TEXT NOT NULL,
    author     TEXT NOT NULL,
    reason     TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    starts_at  INTEGER NOT NULL,
    ends_at    INTEGER NOT NULL,
    over_at    INTEGER,
    sum        INTEGER NOT NULL AS (row_sum(
        'silences', tenant, id, matchers, author, reason, created_at, starts_at, ends_at, over_at
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX silences_live ON silences (tenant, id) WHERE over_at IS NULL;

-- What each receiver would have been told of an incident that fires, and what holds it back.
CREATE TABLE withheld (
    tenant   TEXT NOT NULL,
    incident TEXT NOT NULL,
    receiver TEXT NOT NULL,
    kind     TEXT NOT NULL,
    held_by  TEXT NOT NULL,
    sum      INTEGER NOT NULL AS (row_sum('withheld', tenant, incident, receiver, kind, held_by)) STORED,
    PRIMARY KEY (tenant, incident, receiver)
) STRICT, WITHOUT ROWID;
