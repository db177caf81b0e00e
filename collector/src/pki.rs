//! The certificate authority and what it signs.
