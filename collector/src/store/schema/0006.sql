-- Schema 6: a checksum in each row, by which a row is known whose bytes were turned. SQLite has none of its own.
--
-- `row_sum` is a function of this program (`sums.rs`), so nothing else can write these tables; whoever reads them needs it not.
-- SQLite adds no such column to a table that is there, so each one is made anew.

ALTER TABLE agents RENAME TO old_agents;
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
    sum                    INTEGER NOT NULL AS (row_sum(
        'agents', tenant, id, host, version, system, token_labels, own_labels, targets, ephemeral, enrolled_at,
        certificate_expires_at, denied_at, forget_at, last_seen_at, stopped_at
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
INSERT INTO agents SELECT * FROM old_agents;
DROP TABLE old_agents;

ALTER TABLE lanes RENAME TO old_lanes;
CREATE TABLE lanes (
    tenant       TEXT NOT NULL,
    agent        TEXT NOT NULL,
    epoch        TEXT NOT NULL,
    lane         TEXT NOT NULL,
    through      INTEGER NOT NULL,
    last_first   INTEGER NOT NULL,
    last_digest  BLOB NOT NULL,
    updated_at   INTEGER NOT NULL,
    start_number INTEGER,
    start_word   TEXT,
    sum          INTEGER NOT NULL AS (row_sum(
        'lanes', tenant, agent, epoch, lane, through, last_first, last_digest, updated_at, start_number,
        start_word
    )) STORED,
    PRIMARY KEY (tenant, agent, epoch, lane)
) STRICT, WITHOUT ROWID;
INSERT INTO lanes SELECT * FROM old_lanes;
DROP TABLE old_lanes;

ALTER TABLE findings RENAME TO old_findings;
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
    incident    TEXT,
    sum         INTEGER NOT NULL AS (row_sum(
        'findings', id, tenant, agent, fingerprint, check_id, target, sub_key, status, severity, change, summary,
        reason, advice, evidence, since, observed_at, received_at, incident
    )) STORED
) STRICT;
INSERT INTO findings SELECT * FROM old_findings;
DROP TABLE old_findings;
CREATE INDEX findings_by_agent ON findings (tenant, agent);
CREATE INDEX findings_by_check ON findings (tenant, check_id, severity);

ALTER TABLE incidents RENAME TO old_incidents;
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
    sum             INTEGER NOT NULL AS (row_sum(
        'incidents', tenant, id, fingerprint, agent, check_id, target, sub_key, status, severity, summary,
        advice, evidence, evidence_lost, since, opened_at, updated_at, resolved_at, resolved_reason, occurrences,
        state_epoch, state_since, seen_epoch, seen_at
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT;
INSERT INTO incidents SELECT * FROM old_incidents;
DROP TABLE old_incidents;
CREATE INDEX incidents_firing ON incidents (tenant, id) WHERE status = 'firing';
CREATE INDEX incidents_by_agent ON incidents (tenant, agent, id);
CREATE INDEX incidents_by_end ON incidents (resolved_at) WHERE status = 'resolved';

-- The key is promise (a) of the design: a state of an incident is decided once for each receiver.
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
    sum         INTEGER NOT NULL AS (row_sum(
        'decisions', tenant, incident, receiver, state_epoch, told, kind, reason, decided_at, message
    )) STORED,
    PRIMARY KEY (tenant, incident, receiver, state_epoch)
) STRICT, WITHOUT ROWID;
INSERT INTO decisions SELECT * FROM old_decisions;
DROP TABLE old_decisions;

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
    sum             INTEGER NOT NULL AS (row_sum(
        'outbox', tenant, id, receiver, incident, kind, body, decided_at, state, attempts, uncertain,
        next_attempt_at, settled_at, last_error
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT;
INSERT INTO outbox SELECT * FROM old_outbox;
DROP TABLE old_outbox;
CREATE INDEX outbox_waiting ON outbox (tenant, incident, receiver, id) WHERE state = 'waiting';
CREATE INDEX outbox_due ON outbox (receiver, id, next_attempt_at) WHERE state = 'waiting';
CREATE INDEX outbox_settled ON outbox (settled_at) WHERE settled_at IS NOT NULL;

ALTER TABLE bodies RENAME TO old_bodies;
CREATE TABLE bodies (
    id          INTEGER PRIMARY KEY,
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    lane        TEXT NOT NULL,
    first       INTEGER NOT NULL,
    through     INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    body        BLOB NOT NULL,
    sum         INTEGER NOT NULL AS (row_sum(
        'bodies', id, tenant, agent, epoch, lane, first, through, received_at, body
    )) STORED
) STRICT;
INSERT INTO bodies SELECT * FROM old_bodies;
DROP TABLE old_bodies;

ALTER TABLE losses RENAME TO old_losses;
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
    sum         INTEGER NOT NULL AS (row_sum(
        'losses', tenant, agent, epoch, lane, first, last, count, outcome, received_at
    )) STORED,
    PRIMARY KEY (tenant, agent, epoch, lane, first)
) STRICT, WITHOUT ROWID;
INSERT INTO losses SELECT * FROM old_losses;
DROP TABLE old_losses;

ALTER TABLE tokens RENAME TO old_tokens;
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
    sum        INTEGER NOT NULL AS (row_sum(
        'tokens', tenant, id, hash, labels, ephemeral, uses, used, created_at, expires_at, revoked_at
    )) STORED,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;
INSERT INTO tokens SELECT * FROM old_tokens;
DROP TABLE old_tokens;

ALTER TABLE api_tokens RENAME TO old_api_tokens;
CREATE TABLE api_tokens (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    hash       BLOB NOT NULL,
    role       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    sum        INTEGER NOT NULL AS (row_sum('api_tokens', tenant, name, hash, role, created_at)) STORED,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;
INSERT INTO api_tokens SELECT * FROM old_api_tokens;
DROP TABLE old_api_tokens;

-- The newest levels of each agent, whole as they were told.
ALTER TABLE levels RENAME TO old_levels;
CREATE TABLE levels (
    tenant      TEXT NOT NULL,
    agent       TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    seen_at     INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    levels      TEXT NOT NULL,
    sum         INTEGER NOT NULL AS (row_sum('levels', tenant, agent, epoch, seen_at, received_at, levels)) STORED,
    PRIMARY KEY (tenant, agent)
) STRICT, WITHOUT ROWID;
INSERT INTO levels SELECT * FROM old_levels;
DROP TABLE old_levels;
CREATE INDEX levels_by_age ON levels (received_at);

-- One row for each application's use of one server on one day in UTC. `counts` is a histogram of leased connections.
ALTER TABLE pool_use RENAME TO old_pool_use;
CREATE TABLE pool_use (
    tenant      TEXT NOT NULL,
    server      TEXT NOT NULL,
    application TEXT NOT NULL,
    day         INTEGER NOT NULL,
    samples     INTEGER NOT NULL,
    peak        INTEGER NOT NULL,
    peak_open   INTEGER NOT NULL,
    counts      TEXT NOT NULL,
    sum         INTEGER NOT NULL AS (row_sum(
        'pool_use', tenant, server, application, day, samples, peak, peak_open, counts
    )) STORED,
    PRIMARY KEY (tenant, server, application, day)
) STRICT, WITHOUT ROWID;
INSERT INTO pool_use SELECT * FROM old_pool_use;
DROP TABLE old_pool_use;
CREATE INDEX pool_use_by_day ON pool_use (day);

-- One row for each tenant: received = committed + duplicate + refused. `lost` is what agents said they lost.
ALTER TABLE tallies RENAME TO old_tallies;
CREATE TABLE tallies (
    tenant    TEXT NOT NULL PRIMARY KEY,
    received  INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    duplicate INTEGER NOT NULL,
    refused   INTEGER NOT NULL,
    lost      INTEGER NOT NULL,
    sum       INTEGER NOT NULL AS (row_sum('tallies', tenant, received, committed, duplicate, refused, lost)) STORED
) STRICT, WITHOUT ROWID;
INSERT INTO tallies SELECT * FROM old_tallies;
DROP TABLE old_tallies;

ALTER TABLE excesses RENAME TO old_excesses;
CREATE TABLE excesses (
    tenant  TEXT NOT NULL,
    agent   TEXT NOT NULL,
    "limit" TEXT NOT NULL,
    times   INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    sum     INTEGER NOT NULL AS (row_sum('excesses', tenant, agent, "limit", times, last_at)) STORED,
    PRIMARY KEY (tenant, agent, "limit")
) STRICT, WITHOUT ROWID;
INSERT INTO excesses SELECT * FROM old_excesses;
DROP TABLE old_excesses;

-- One row, written to find out whether anything can be written.
ALTER TABLE pulse RENAME TO old_pulse;
CREATE TABLE pulse (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL,
    sum INTEGER NOT NULL AS (row_sum('pulse', id, at)) STORED
) STRICT;
INSERT INTO pulse SELECT * FROM old_pulse;
DROP TABLE old_pulse;
