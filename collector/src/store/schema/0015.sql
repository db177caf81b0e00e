-- Schema 15: what each message was written for.

-- `form` is the kind of the receiver when the message was decided, as its configuration names it; nothing is known of those before.
ALTER TABLE outbox RENAME TO old_outbox;
CREATE TABLE outbox (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    receiver        TEXT NOT NULL,
    incident        TEXT NOT NULL,
    kind            TEXT NOT NULL,
    body            BLOB NOT NULL,
    decided_at      INTEGER NOT NULL,
    state           TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    uncertain       INTEGER NOT NULL,
    next_attempt_at INTEGER NOT NULL,
    settled_at      INTEGER,
    last_error      TEXT,
    form            TEXT,
    sum             INTEGER NOT NULL AS (row_sum(
        'outbox', tenant, id, receiver, incident, kind, body, decided_at, state, attempts, uncertain,
        next_attempt_at, settled_at, last_error, form
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT;
INSERT INTO outbox (tenant, id, receiver, incident, kind, body, decided_at, state, attempts, uncertain,
        next_attempt_at, settled_at, last_error)
    SELECT tenant, id, receiver, incident, kind, body, decided_at, state, attempts, uncertain,
        next_attempt_at, settled_at, last_error FROM old_outbox ORDER BY rowid;
DROP TABLE old_outbox;
CREATE INDEX outbox_waiting ON outbox (tenant, incident, receiver, id) WHERE state = 'waiting';
CREATE INDEX outbox_due ON outbox (receiver, id, next_attempt_at) WHERE state = 'waiting';
CREATE INDEX outbox_settled ON outbox (settled_at) WHERE settled_at IS NOT NULL;
CREATE INDEX outbox_repeats ON outbox (tenant, incident, id) WHERE kind = 'group.repeated';
CREATE INDEX outbox_dead ON outbox (receiver) WHERE state = 'dead';
