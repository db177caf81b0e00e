-- Schema 7: every list of findings and incidents is read from the end of ranges that are in its order, whatever the filters.

DROP INDEX findings_by_agent;
DROP INDEX findings_by_check;
CREATE INDEX findings_by_agent ON findings (tenant, agent, check_id, severity, status);
CREATE INDEX findings_by_check ON findings (tenant, check_id, severity, status);
CREATE INDEX findings_by_severity ON findings (tenant, severity, status);

DROP INDEX incidents_by_agent;
CREATE INDEX incidents_by_agent ON incidents (tenant, agent, check_id, severity, status, id);
CREATE INDEX incidents_by_check ON incidents (tenant, check_id, severity, status, id);
CREATE INDEX incidents_by_severity ON incidents (tenant, severity, status, id);
