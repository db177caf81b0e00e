//! Wires the stages, starts them, drains them.
