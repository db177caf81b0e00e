//! From bytes on a socket to an accepted batch.
