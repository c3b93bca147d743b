//! The sitter's pure core: what a peer should do next, from what it knows now.
//!
//! No I/O, no clock, no async, no randomness: time is an argument ([`view::View::now_ms`]).
//! The driver observes, calls `decide`, executes the returned action, and asks again.

pub mod action;
pub mod decide;
pub mod local;
pub mod preempt;
pub mod suspicion;
pub mod tracker;
pub mod view;
