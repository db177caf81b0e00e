//! Token and certificate request in, certificate out.
