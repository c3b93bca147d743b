//! Manatee's proxy. `bin → server → driver → pool, topology → session → wire`; session, route and
//! wire are pure: bytes in, actions out.

pub mod admin;
pub mod auth;
pub mod cancel;
pub mod catalog;
pub mod config;
pub mod driver;
pub mod error;
pub mod fuzzing;
pub mod http;
pub mod metrics;
pub mod pool;
pub mod relay;
pub mod route;
pub mod server;
pub mod session;
pub mod shards;
pub mod tls;
pub mod topology;
pub mod upstream;
pub mod wire;
