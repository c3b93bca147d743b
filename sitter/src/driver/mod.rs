//! Being written.
pub mod status;
