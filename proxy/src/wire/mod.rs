//! The protocol as bytes: parsing and building messages. Pure: no sockets, no clock.

pub mod scram;
pub mod startup;
