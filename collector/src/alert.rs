//! Who hears of an incident, when, and why not.
