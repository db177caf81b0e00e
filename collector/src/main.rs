//! `tickbird-collector`: arguments, signals, exit code; nothing else.
fn main() {}
