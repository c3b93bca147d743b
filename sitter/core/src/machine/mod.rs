//! The sitter's pure core: what a peer should do next, from what it knows now.
//!
//! No I/O, no clock, no async, no randomness: time is an argument ([`view::View::now_ms`]).
//! The driver observes, lets its [`tracker::Tracker`] complete the view, calls
//! [`decide::decide`], executes the returned action, and asks again. The rules it obeys are those
//! of design §2, cited by number where they are.

pub mod action;
pub mod capacity;
pub mod decide;
pub mod failure;
pub mod followers;
pub mod local;
pub mod preempt;
pub mod readiness;
pub mod returning;
pub mod situation;
pub mod suspicion;
pub mod tracker;
pub mod view;

mod first_setup;
mod hand_over;

mod membership;
mod one_node_write;
mod primary;
mod replace;
mod standby;
mod stopping;
mod takeover;
#[cfg(test)]
mod tests;
