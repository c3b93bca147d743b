//! Routing: what a text of SQL means to the proxy ([`Class`]), found in one pass over its bytes and a
//! cache ([`Classifier`]); PostgreSQL's own parser runs on a miss only.
//!
//! Pure: no I/O, no clock. What a database's functions and views do comes in as a
//! [`volatility::Catalog`]; without one only texts that name none may leave the primary.
//!
//! Everything here denies by default: what is not known to be a harmless read belongs to the primary.

mod cache;
pub mod class;
mod databases;
mod parse;
mod settings;
pub mod tokenizer;
mod transactions;
pub mod volatility;
mod walk;

pub use cache::{CacheCounters, Classifier, classify_uncached};
pub use class::{Access, Class, Control, Effects, Hint, SettingChange, SqlContext, TransactionControl};
pub use volatility::Catalog;
