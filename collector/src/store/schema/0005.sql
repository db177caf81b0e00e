-- Schema 5: the start of the agent's buffer that each lane goes by. Nothing where none was named.

ALTER TABLE lanes ADD COLUMN start_number INTEGER;
ALTER TABLE lanes ADD COLUMN start_word TEXT;
