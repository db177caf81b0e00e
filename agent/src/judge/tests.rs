//! (tests)
pub(crate) mod rows;
