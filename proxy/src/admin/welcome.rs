//! Greeting of a console whose user has logged in.

use bytes::BytesMut;

use crate::wire::backend::{self, TxStatus};
use crate::wire::startup::{Authentication, encode_backend_key};

/// Settings a console reports, as PgBouncer's does.
const PARAMETERS: [(&str, &str); 8] = [
    ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/manatee")),
    ("client_encoding", "UTF8"),
    ("server_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("standard_conforming_strings", "on"),
    ("integer_datetimes", "on"),
    ("is_superuser", "on"),
];

/// Appends it.
pub fn welcome(out: &mut BytesMut) {
    Authentication::Ok.encode(out);
    for (name, value) in PARAMETERS {
        backend::put_parameter_status(out, name.as_bytes(), value.as_bytes());
    }
    // Nothing that a console runs can be cancelled.
    encode_backend_key(out, 0, &[0; 4]);
    backend::put_ready(out, TxStatus::Idle);
}
