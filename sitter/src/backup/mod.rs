//! Copies of data between peers, and what is told of them.
//!
//! A peer that needs data pulls it, over one authenticated HTTP connection, from the API of a peer
//! that is fit to give it; nothing is ever dialled back. See [`progress`] for what operators see.

pub mod progress;
