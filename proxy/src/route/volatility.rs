//! What a database's functions and relations may do.

/// What is known about one database's functions and relations.
#[derive(Debug, Default)]
pub struct Catalog {}
