//! Listening sockets: bound before anything starts, so that a busy port is one clear line and a
//! non-zero exit; or taken over from the process this one replaces.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use pingora_core::server::ListenFds;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

/// Connections that may wait to be accepted (the kernel caps it at net.core.somaxconn).
const BACKLOG: i32 = 4096;

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: cannot listen on {address}: {source}; stop whoever uses it or configure another address")]
pub struct ListenError {
    key: &'static str,
    address: String,
    source: std::io::Error,
}

/// Address of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A configured address, bound or to be taken over.
#[derive(Debug)]
pub struct Listener {
    key: &'static str,
    address: Address,
    bound: Option<OwnedFd>,
}

/// A socket that accepts.
#[derive(Debug)]
pub enum Incoming {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// An accepted connection, not registered with any reactor.
#[derive(Debug)]
pub enum Accepted {
    /// TCP.
    Tcp(std::net::TcpStream),
    /// A Unix socket.
    Unix(std::os::unix::net::UnixStream),
}

impl Incoming {
    /// The next connection, and where it comes from; a Unix socket has no address: port 0 of the
    /// loopback interface stands for it. Cancel-safe: what is not taken stays in the backlog.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn accept(&self) -> std::io::Result<(Accepted, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, address) = listener.accept().await?;
                Ok((Accepted::Tcp(socket.into_std()?), address))
            }
            Self::Unix(listener) => {
                let (socket, _) = listener.accept().await?;
                Ok((Accepted::Unix(socket.into_std()?), SocketAddr::from(([127, 0, 0, 1], 0))))
            }
        }
    }

    /// Address it listens at, if that is TCP.
    ///
    /// # Errors
    /// The operating system's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Unix(_) => Err(std::io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

impl Listener {
    /// Binds now.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn bind(key: &'static str, address: Address) -> Result<Self, ListenError> {
        match bind(&address) {
            Ok(bound) => Ok(Self { key, address, bound: Some(bound) }),
            Err(source) => Err(ListenError { key, address: address.to_string(), source }),
        }
    }

    /// To be taken over from the running process.
    pub fn inherit(key: &'static str, address: Address) -> Self {
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
    pub fn open(&mut self, table: Option<&ListenFds>) -> Result<Incoming, ListenError> {
        let (key, address) = (self.key, self.address.clone());
        let bound = self.bound.take();
        let result = open(&address, bound, table);
        result.map_err(|source| ListenError { key, address: address.to_string(), source })
    }

    /// As [`Listener::open`], where it has to be TCP.
    ///
    /// # Errors
    /// [`ListenError`]
    pub fn open_tcp(&mut self, table: Option<&ListenFds>) -> Result<TcpListener, ListenError> {
        match self.open(table)? {
            Incoming::Tcp(listener) => Ok(listener),
            Incoming::Unix(_) => Err(ListenError {
                key: self.key,
                address: self.name(),
                source: std::io::ErrorKind::InvalidInput.into(),
            }),
        }
    }
}

fn open(address: &Address, bound: Option<OwnedFd>, table: Option<&ListenFds>) -> std::io::Result<Incoming> {
    let name = address.to_string();
    let inherited: Option<RawFd> = table.and_then(|table| table.lock().get(&name).copied());
    let fd = match (bound, inherited) {
        (Some(bound), _) => bound,
        (None, Some(fd)) => {
            // SAFETY: the table owns `fd` and keeps it open for the life of the process; it is
            // only borrowed for as long as duplicating takes.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            borrowed.try_clone_to_owned()?
        }
        (None, None) => bind(address)?,
    };
    let raw = fd.as_raw_fd();
    let incoming = match address {
        Address::Tcp(_) => {
            let listener = std::net::TcpListener::from(fd);
            listener.set_nonblocking(true)?;
            Incoming::Tcp(TcpListener::from_std(listener)?)
        }
        Address::Unix(_) => {
            let listener = std::os::unix::net::UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            Incoming::Unix(UnixListener::from_std(listener)?)
        }
    };
    if let Some(table) = table
        && inherited.is_none()
    {
        table.lock().add(name, raw);
    }
    Ok(incoming)
}

fn bind(address: &Address) -> std::io::Result<OwnedFd> {
    match address {
        Address::Tcp(address) => {
            let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.bind(&(*address).into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        }
        Address::Unix(path) => bind_unix(path),
    }
}

/// Anybody may connect: the rules decide who they are, as with PostgreSQL's own socket.
fn bind_unix(path: &Path) -> std::io::Result<OwnedFd> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::ErrorKind::AddrInUse.into());
    }
    // What a process that is gone left behind.
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_port_is_named() {
        let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("free");
        let address = Address::Tcp(holder.local_addr().expect("address"));
        let error = Listener::bind("listen.http", address).expect_err("busy").to_string();
        assert!(error.starts_with("`listen.http`: cannot listen on 127.0.0.1:"), "{error}");
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join(".s.PGSQL.6432");
        let address = Address::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        let _listener = Listener::bind("listen.unix_directory", address.clone()).expect("nobody listens there");
        assert!(Listener::bind("listen.unix_directory", address).is_err());
    }
}
