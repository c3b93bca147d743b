//! Listening sockets: bound before anything starts, so that a busy port is one clear line and a
//! non-zero exit; or taken over from the process this one replaces.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use pingora_core::server::ListenFds;
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait to be accepted (the kernel caps it at net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: cannot listen on {address}: {source}; stop whoever uses it or configure another address")]
pub struct ListenError {
    key: &'static str,
    address: SocketAddr,
    source: std::io::Error,
}

/// A configured address, bound or to be taken over.
#[derive(Debug)]
pub struct Listener {
    key: &'static str,
    address: SocketAddr,
    bound: Option<std::net::TcpListener>,
}

impl Listener {
    /// Binds now.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind(key: &'static str, address: SocketAddr) -> Result<Self, ListenError> {
        let bound = bind(address).map_err(|source| ListenError { key, address, source })?;
        Ok(Self { key, address, bound: Some(bound) })
    }

    /// To be taken over from the running process.
    pub fn inherit(key: &'static str, address: SocketAddr) -> Self {
        Self { key, address, bound: None }
    }

    /// The name in the table of sockets to hand over.
    pub fn name(&self) -> String {
        self.address.to_string()
    }

    /// The socket, entered in the table that a successor will get; binds if nothing was inherited.
    /// Call within the runtime that is to accept.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn open(&mut self, table: Option<&ListenFds>) -> Result<tokio::net::TcpListener, ListenError> {
        let (key, address) = (self.key, self.address);
        let fail = |source| ListenError { key, address, source };
        let inherited = table.and_then(|table| table.lock().get(&self.name()).copied());
        let listener = match (self.bound.take(), inherited) {
            (Some(bound), _) => bound,
            (None, Some(fd)) => {
                // SAFETY: the table owns `fd` and keeps it open for the life of the process; it is
                // only borrowed for as long as duplicating takes.
                let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
                borrowed.try_clone_to_owned().map_err(fail)?.into()
            }
            (None, None) => bind(address).map_err(fail)?,
        };
        listener.set_nonblocking(true).map_err(fail)?;
        if let Some(table) = table
            && inherited.is_none()
        {
            table.lock().add(self.name(), listener.as_raw_fd());
        }
        tokio::net::TcpListener::from_std(listener).map_err(fail)
    }
}

fn bind(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_named() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
        let error = Listener::bind("listen.http", holder.local_addr().expect("address")).expect_err("busy").to_string();
        assert!(error.starts_with("`listen.http`: cannot listen on 127.0.0.1:"), "{error}");
    }
}
