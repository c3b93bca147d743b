//! Ground of the local PostgreSQL and of its data: files, the operating system's user, programs of
//! PostgreSQL and ZFS, the control file, the layout of a peer's folder.

pub(crate) mod control;
pub(crate) mod error;
pub(crate) mod failure;
pub(crate) mod files;
mod layout;
pub(crate) mod osuser;
pub(crate) mod tool;

pub use error::Error;
pub use layout::Layout;

/// Role that streams WAL, copies data and rewinds.
pub const REPLICATION_ROLE: &str = "manatee_replication";
