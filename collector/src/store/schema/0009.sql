-- Schema 9: incidents that are told together.

-- What is decided and waits for the next message of its group names that message and is not told yet.
ALTER TABLE decisions RENAME TO old_decisions;
CREATE TABLE decisions (
    tenant      TEXT NOT NULL,
    incident    TEXT NOT NULL,
    receiver    TEXT NOT NULL,
    state_epoch INTEGER NOT NULL,
    told        INTEGER NOT NULL,
    kind        TEXT NOT NULL,
    reason      TEXT NOT NULL,
    decided_at  INTEGER NOT NULL,
    message     TEXT,
    in_group    TEXT,
    sum         INTEGER NOT NULL AS (row_sum(
        'decisions', tenant, incident, receiver, state_epoch, told, kind, reason, decided_at, message, in_group
    )) STORED,
    PRIMARY KEY (tenant, incident, receiver, state_epoch)
) STRICT, WITHOUT ROWID;
INSERT INTO decisions (tenant, incident, receiver, state_epoch, told, kind, reason, decided_at, message)
    SELECT tenant, incident, receiver, state_epoch, told, kind, reason, decided_at, message FROM old_decisions;
DROP TABLE old_decisions;
CREATE INDEX decisions_gathered ON decisions (tenant, message) WHERE told = 0 AND message IS NOT NULL;

-- Messages in which nothing is new have no decision of their own.
CREATE INDEX outbox_repeats ON outbox (tenant, incident, id) WHERE kind = 'group.repeated';

-- One receiver's incidents of one route that have the same values of the labels it groups by. The next message is named while
-- something waits for it.
CREATE TABLE alert_groups (
    tenant   TEXT NOT NULL,
    id       TEXT NOT NULL,
    receiver TEXT NOT NULL,
    route    TEXT NOT NULL,
    labels   TEXT NOT NULL,
    message  TEXT,
    due_at   INTEGER,
    told_at  INTEGER,
    sum      INTEGER NOT NULL AS (
        row_sum('alert_groups', tenant, id, receiver, route, labels, message, due_at, told_at)
    ) STORED,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
