//! Expiry and trust of certificates.
