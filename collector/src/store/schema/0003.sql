-- Schema 3: what became of the records of agents, so that the sum is kept across restarts.

-- One row for each tenant: received = committed + duplicate + refused. `lost` is what agents said they lost.
CREATE TABLE tallies (
    tenant    TEXT NOT NULL PRIMARY KEY,
    received  INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    duplicate INTEGER NOT NULL,
    refused   INTEGER NOT NULL,
    lost      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
