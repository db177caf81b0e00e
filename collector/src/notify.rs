//! Delivery of what was decided, with retries.
