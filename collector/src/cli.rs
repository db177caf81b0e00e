//! The command line, by noun.
