-- Schema 14: how many messages to a receiver were given up, without reading them all.

CREATE INDEX outbox_dead ON outbox (receiver) WHERE state = 'dead';
