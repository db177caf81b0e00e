-- Schema 1. Times are microseconds since 1970 in UTC. The tenant comes first in every key; the two tables whose rows are
-- appended for ever (findings, bodies) are ordered by a counter, so that a page and a slice of the oldest are one range,
-- and each of their indexes starts with the tenant.

CREATE TABLE agents (
    tenant                 TEXT NOT NULL,
    id                     TEXT NOT NULL,
    host                   TEXT NOT NULL,
    version                TEXT,
    system                 TEXT,
    token_labels           TEXT NOT NULL,
    own_labels             TEXT NOT NULL,
    targets                TEXT NOT NULL,
    ephemeral              INTEGER NOT NULL,
    enrolled_at            INTEGER NOT NULL,
    certificate_expires_at INTEGER NOT NULL,
    denied_at              INTEGER,
    forget_at              INTEGER,
    last_seen_at           INTEGER,
    stopped_at             INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE lanes (
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    lane        TEXT NOT NULL,
    through     INTEGER NOT NULL,
    last_first  INTEGER NOT NULL,
    last_digest BLOB NOT NULL,
    updated_at  INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent, epoch, lane)
) STRICT, WITHOUT ROWID;

CREATE TABLE findings (
    id          INTEGER PRIMARY KEY,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    check_id    TEXT NOT NULL,
    target      TEXT NOT NULL,
    sub_key     TEXT,
    status      TEXT NOT NULL,
    severity    TEXT NOT NULL,
    change      TEXT NOT NULL,
    summary     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    advice      TEXT,
    evidence    TEXT NOT NULL,
    since       INTEGER NOT NULL,
    observed_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    incident    TEXT
) STRICT;
CREATE INDEX findings_by_agent ON findings (tenant, agent);
CREATE INDEX findings_by_check ON findings (tenant, check_id, severity);

CREATE TABLE incidents (
    tenant          TEXT NOT NULL,
    id              TEXT NOT NULL,
    fingerprint     BLOB NOT NULL,
    agent           TEXT NOT NULL,
    check_id        TEXT NOT NULL,
    target          TEXT NOT NULL,
    sub_key         TEXT,
    status          TEXT NOT NULL,
    severity        TEXT NOT NULL,
    summary         TEXT NOT NULL,
    advice          TEXT,
    evidence        TEXT NOT NULL,
    evidence_lost   INTEGER NOT NULL,
    since           INTEGER NOT NULL,
    opened_at       INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL,
    resolved_at     INTEGER,
    resolved_reason TEXT,
    occurrences     INTEGER NOT NULL,
    state_epoch     INTEGER NOT NULL,
    state_since     INTEGER NOT NULL,
    seen_epoch      TEXT,
    seen_at         INTEGER NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX incidents_firing ON incidents (tenant, id) WHERE status = 'firing';
CREATE INDEX incidents_by_agent ON incidents (tenant, agent, id);
CREATE INDEX incidents_by_end ON incidents (resolved_at) WHERE status = 'resolved';

-- The key is promise (a) of the design: a state of an incident is decided once for each receiver.
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
    PRIMARY KEY (tenant, incident, receiver, state_epoch)
) STRICT, WITHOUT ROWID;

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
    PRIMARY KEY (tenant, id)
) STRICT;
CREATE INDEX outbox_waiting ON outbox (tenant, incident, receiver, id) WHERE state = 'waiting';
CREATE INDEX outbox_due ON outbox (receiver, id, next_attempt_at) WHERE state = 'waiting';
CREATE INDEX outbox_settled ON outbox (settled_at) WHERE settled_at IS NOT NULL;

CREATE TABLE bodies (
    id          INTEGER PRIMARY KEY,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    lane        TEXT NOT NULL,
    first       INTEGER NOT NULL,
    through     INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    body        BLOB NOT NULL
) STRICT;

CREATE TABLE losses (
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    lane        TEXT NOT NULL,
    first       INTEGER NOT NULL,
    last        INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    outcome     TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent, epoch, lane, first)
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    tenant     TEXT NOT NULL,
    id         TEXT NOT NULL,
    hash       BLOB NOT NULL,
    labels     TEXT NOT NULL,
    ephemeral  INTEGER NOT NULL,
    uses       INTEGER NOT NULL,
    used       INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE api_tokens (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL,
    role       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

-- One row, written to find out whether anything can be written.
CREATE TABLE pulse (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
) STRICT;
