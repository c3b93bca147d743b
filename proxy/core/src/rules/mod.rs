//! Login rules: who may connect from where, and as which role.

pub mod hba;
pub mod usermap;
