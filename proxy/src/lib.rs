//! Manatee's proxy. `bin → server → driver → pool, topology → core`. The pure part, sessions, routing and
//! the wire protocol, is the crate `manatee-proxy-core`: bytes in, actions out.

pub mod admin;
pub mod auth;
pub mod cancel;
pub mod catalog;
pub mod config;
pub mod context;
pub mod driver;
pub mod http;
pub mod metrics;
pub mod own_role;
pub mod pool;
pub mod relay;
pub mod room;
pub mod server;
pub mod session_threads;
pub mod shards;
pub mod tls;
pub mod topology;
pub mod upstream;

pub use manatee_proxy_core::{error, route, session, wire};
