//! Findings of many agents in, incident changes out.
