//! Text in, a configuration that cannot be wrong out, or every mistake.
