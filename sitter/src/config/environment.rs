//! Whether this host can run what the configuration asks for. Each refusal is one line: what,
//! where, and what to do. Nothing is changed here but the peer's folder and its lock file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use manatee_shared::ids::{PeerId, ShardName};
use nix::fcntl::{Flock, FlockArg};

use crate::storage::zfs::command;

/// Folder in which Debian and its kin keep the versions of PostgreSQL.
pub const DEBIAN_VERSIONS: &str = "/usr/lib/postgresql";

/// The programs that are run.
const PROGRAMS: [&str; 6] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_verifybackup"];

/// Reason why this host cannot run the sitter.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// No PostgreSQL is installed where expected.
    #[error(
        "no PostgreSQL under {DEBIAN_VERSIONS}; install it, or set `postgres.bin_dir` to the folder of its programs"
    )]
    NoPostgres,
    /// The version of the data is not installed.
    #[error(
        "the data in `peer.dir` is of PostgreSQL {version}, but {} has no postgres; install that version, or set \
         `postgres.bin_dir` to the folder of its programs", folder.display()
    )]
    NoVersion {
        /// As in PG_VERSION.
        version: String,
        /// Folder it would be in.
        folder: PathBuf,
    },
    /// Programs are missing.
    #[error("`postgres.bin_dir`: {} has no {program}; install PostgreSQL's server package or correct the folder", folder.display())]
    NoProgram {
        /// The folder looked in.
        folder: PathBuf,
        /// The first one missing.
        program: &'static str,
    },
    /// PostgreSQL refuses to run as root.
    #[error("`postgres.os_user`: there is no user `{0}` on this host, and PostgreSQL does not run as root; create it")]
    NoUser(String),
    /// ZFS commands mount and need root.
    #[error("`storage.kind`: \"zfs\" {0}")]
    NoZfs(&'static str),
    /// The peer's folder.
    #[error("`peer.dir`: cannot use {}: {source}; create it or correct its owner", path.display())]
    Folder {
        /// The folder or the lock file in it.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Rule 10: one sitter per peer.
    #[error("`peer.dir`: another sitter (process {holder}) is running on {}; stop it first", path.display())]
    Running {
        /// The lock file.
        path: PathBuf,
        /// Its holder.
        holder: String,
    },
    /// The folder belongs to somebody else.
    #[error(
        "`peer.dir`: {} belongs to peer {found}, this is {wanted}; correct `peer.dir`, or remove {} if the peer was renamed",
        folder.display(), lock.display()
    )]
    OtherPeer {
        /// The folder.
        folder: PathBuf,
        /// The lock file, which says so.
        lock: PathBuf,
        /// Its owner.
        found: String,
        /// Our user.
        wanted: String,
    },
    /// The address is another host's.
    #[error("`peer.ip`: this host does not have {address}: {source}; name the address by which others reach this host")]
    Address {
        /// The address.
        address: IpAddr,
        /// Cause.
        source: io::Error,
    },
    /// The peer's folder cannot be one.
    #[error("`peer.dir`: {} {problem}", path.display())]
    NotAFolder {
        /// The folder.
        path: PathBuf,
        /// Problem and remedy.
        problem: String,
    },
    /// A secret that everybody may read or replace.
    #[error("`{key}`: {} has mode {mode:04o}: everybody on this host may read or change it; chmod 600 it", path.display())]
    OpenSecret {
        /// The configuration's key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A port.
    #[error("`{key}`: cannot listen on {address}: {source}; {remedy}")]
    Port {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
        /// Remedy.
        remedy: &'static str,
    },
}

/// The folder of PostgreSQL's programs: as configured, else of the version that the data in the peer's folder is of,
/// else the newest of Debian's. A distribution's upgrade that brings a newer one changes nothing.
pub fn find_programs(configured: Option<&Path>, dir: &Path) -> Result<PathBuf, Unfit> {
    let folder = match configured {
        Some(folder) => folder.to_owned(),
        None => choose(Path::new(DEBIAN_VERSIONS), dir)?,
    };
    match PROGRAMS.into_iter().find(|program| !folder.join(program).is_file()) {
        None => Ok(folder),
        Some(program) => Err(Unfit::NoProgram { folder, program }),
    }
}

fn choose(versions: &Path, dir: &Path) -> Result<PathBuf, Unfit> {
    // A copy that is being made tells as well.
    let of = |data: &str| std::fs::read_to_string(dir.join(data).join("PG_VERSION")).ok();
    let Some(version) = of("data").or_else(|| of("data.new")).map(|text| text.trim().to_owned()) else {
        return newest_under(versions).ok_or(Unfit::NoPostgres);
    };
    let folder = versions.join(&version).join("bin");
    if folder.join("postgres").is_file() { Ok(folder) } else { Err(Unfit::NoVersion { version, folder }) }
}

fn newest_under(versions: &Path) -> Option<PathBuf> {
    let version = |entry: io::Result<std::fs::DirEntry>| {
        let number: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let folder = versions.join(number.to_string()).join("bin");
        folder.join("postgres").is_file().then_some((number, folder))
    };
    std::fs::read_dir(versions).ok()?.filter_map(version).max().map(|(_, folder)| folder)
}

/// Whether the OS user that would run PostgreSQL exists. Only root needs one.
pub fn check_user(name: &str) -> Result<(), Unfit> {
    if !nix::unistd::geteuid().is_root() || matches!(nix::unistd::User::from_name(name), Ok(Some(_))) {
        Ok(())
    } else {
        Err(Unfit::NoUser(name.to_owned()))
    }
}

/// Whether this host can keep data on ZFS.
pub fn check_zfs() -> Result<(), Unfit> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Unfit::NoZfs("mounts file systems, which needs root: run the sitter as root"));
    }
    if !command::is_installed() {
        return Err(Unfit::NoZfs("needs the program `zfs`: install zfsutils-linux (or zfs-fuse)"));
    }
    Ok(())
}

/// The right to act for a peer, held as long as this exists (the kernel takes it back when the
/// process dies). PostgreSQL does not inherit it.
#[derive(Debug)]
pub struct PeerLock {
    _file: Flock<File>,
}

/// Takes the lock of the peer's folder, making the folder if need be. The lock file says whose the
/// folder is, so that a copied or mistyped configuration does not take over another peer's data.
pub fn lock(folder: &Path, shard: &ShardName, me: PeerId) -> Result<PeerLock, Unfit> {
    let path = folder.join("sitter.lock");
    let fail = |source: io::Error| Unfit::Folder { path: path.clone(), source };
    std::fs::create_dir_all(folder).map_err(|source| Unfit::Folder { path: folder.to_owned(), source })?;
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(fail)?;
    let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(file) => file,
        Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
            let mut text = String::new();
            // Only for the message.
            let _ = file.read_to_string(&mut text);
            let holder = text.lines().nth(1).unwrap_or("unknown").to_owned();
            return Err(Unfit::Running { path, holder });
        }
        Err((_, errno)) => return Err(fail(errno.into())),
    };
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(fail)?;
    let wanted = format!("{me} of shard {}", shard.as_str());
    match text.lines().next().map(str::trim) {
        Some(found) if !found.is_empty() && found != wanted => {
            let found = found.to_owned();
            return Err(Unfit::OtherPeer { folder: folder.to_owned(), lock: path, found, wanted });
        }
        _ => {}
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(format!("{wanted}\n{}\n", std::process::id()).as_bytes())
    };
    write().map_err(fail)?;
    Ok(PeerLock { _file: file })
}

/// Whether this host has the peer's address.
pub fn check_address(address: IpAddr) -> Result<(), Unfit> {
    // Port 0: any that is free.
    match TcpListener::bind((address, 0)) {
        Err(source) if source.kind() == io::ErrorKind::AddrNotAvailable => Err(Unfit::Address { address, source }),
        _ => Ok(()),
    }
}

/// File systems that hold no files of anybody's.
const PSEUDO: [(u64, &str); 2] = [(0x9fa0, "proc"), (0x6265_6572, "sysfs")];

/// Whether the peer's folder could be made and kept, and is not another peer's. Only looks.
pub fn check_folder(folder: &Path, shard: &ShardName, me: PeerId) -> Result<(), Unfit> {
    let fail = |problem: String| Err(Unfit::NotAFolder { path: folder.to_owned(), problem });
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !there.is_dir() {
        return fail(format!("cannot be made: {} is not a folder; choose another", there.display()));
    }
    let file_system = rustix::fs::statfs(there).ok().and_then(|found| u64::try_from(found.f_type).ok());
    if let Some((_, name)) = PSEUDO.iter().find(|(magic, _)| file_system == Some(*magic)) {
        return fail(format!("is on {name}, which keeps no files; choose a folder on a disk"));
    }
    if rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_err() {
        return fail(format!(
            "cannot be written: {} belongs to somebody else, or is read-only; correct that",
            there.display()
        ));
    }
    let lock = folder.join("sitter.lock");
    let wanted = format!("{me} of shard {}", shard.as_str());
    let text = std::fs::read_to_string(&lock).unwrap_or_default();
    match text.lines().next().map(str::trim) {
        Some(found) if !found.is_empty() && found != wanted => {
            Err(Unfit::OtherPeer { folder: folder.to_owned(), lock, found: found.to_owned(), wanted })
        }
        _ => Ok(()),
    }
}

/// Whether only their owner and group may read secrets, and only the owner may change them.
pub fn check_secrets(files: &[(&'static str, &Path)]) -> Result<(), Unfit> {
    for (key, path) in files {
        // One that is not there is told by whoever reads it.
        let Ok(facts) = std::fs::metadata(path) else { continue };
        let mode = facts.permissions().mode() & 0o7777;
        if mode & 0o027 != 0 {
            return Err(Unfit::OpenSecret { key, path: (*path).to_owned(), mode });
        }
    }
    Ok(())
}

/// Problem and remedy for a port that cannot be had.
pub fn port_problem(key: &'static str, address: SocketAddr, source: io::Error) -> Unfit {
    let remedy = match source.kind() {
        io::ErrorKind::AddrInUse => "another process has it: stop that, or choose another port",
        io::ErrorKind::AddrNotAvailable => "this host does not have that address: correct `peer.ip`",
        io::ErrorKind::PermissionDenied => "choose a port above 1023, or run as root",
        _ => "choose another",
    };
    Unfit::Port { key, address, source, remedy }
}

/// Whether PostgreSQL could listen at `address`: only to be asked when our own does not run.
pub fn check_postgres_port(address: SocketAddr) -> Result<(), Unfit> {
    // The standard library sets SO_REUSEADDR, as PostgreSQL does: old connections do not count.
    TcpListener::bind(address).map(drop).map_err(|source| port_problem("peer.pg_port", address, source))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may stop at the first surprise")]
    use super::*;

    fn id(port: u16) -> PeerId {
        format!("10.0.0.1:{port}:12345").parse().unwrap()
    }

    #[test]
    fn a_folder_has_one_sitter_and_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let shard: ShardName = "demo".parse().unwrap();
        let held = lock(folder.path(), &shard, id(5432)).unwrap();
        let second = lock(folder.path(), &shard, id(5432)).unwrap_err();
        assert!(
            matches!(&second, Unfit::Running { holder, .. } if *holder == std::process::id().to_string()),
            "{second}"
        );
        drop(held);
        let other = lock(folder.path(), &shard, id(5433)).unwrap_err().to_string();
        assert!(other.contains("belongs to peer 10.0.0.1:5432:12345 of shard demo"), "{other}");
        lock(folder.path(), &shard, id(5432)).expect("free again");
    }

    #[test]
    fn a_busy_port_is_named_with_its_key() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let problem = check_postgres_port(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(problem.starts_with("`peer.pg_port`: cannot listen on 127.0.0.1:"), "{problem}");
        let elsewhere = check_postgres_port("203.0.113.1:5432".parse().unwrap()).unwrap_err().to_string();
        assert!(elsewhere.contains("correct `peer.ip`"), "{elsewhere}");
    }

    #[test]
    fn what_this_host_cannot_be_is_named() {
        let problem = check_address("203.0.113.1".parse().unwrap()).unwrap_err().to_string();
        assert!(problem.contains("does not have 203.0.113.1"), "{problem}");
        check_address("127.0.0.1".parse().unwrap()).unwrap();
        let shard: ShardName = "demo".parse().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (path, words) in [(Path::new("/proc/manatee"), "is on proc"), (Path::new("/dev/null"), "is not a folder")] {
            let problem = check_folder(path, &shard, id(5432)).unwrap_err().to_string();
            assert!(problem.contains(words), "{problem}");
        }
        check_folder(&folder.path().join("new/peer"), &shard, id(5432)).unwrap();
        drop(lock(folder.path(), &shard, id(5433)).unwrap());
        let problem = check_folder(folder.path(), &shard, id(5432)).unwrap_err().to_string();
        assert!(problem.contains("belongs to peer 10.0.0.1:5433:12345"), "{problem}");
        let secret = folder.path().join("secret");
        std::fs::write(&secret, "x").unwrap();
        for (mode, good) in [(0o777, false), (0o644, false), (0o660, false), (0o640, true), (0o600, true)] {
            std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(check_secrets(&[("api.token_file", &secret)]).is_ok(), good, "{mode:o}");
        }
    }

    #[test]
    fn missing_programs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let problem = find_programs(Some(folder.path()), Path::new("/nonexistent")).unwrap_err().to_string();
        assert!(problem.contains("has no postgres"), "{problem}");
    }

    #[test]
    fn programs_are_of_the_datas_version() {
        let (versions, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bin = |version: &str| versions.path().join(version).join("bin");
        for version in ["15", "16"] {
            std::fs::create_dir_all(bin(version)).unwrap();
            std::fs::write(bin(version).join("postgres"), "").unwrap();
        }
        assert_eq!(choose(versions.path(), dir.path()).unwrap(), bin("16"), "without data the newest");
        let data = |folder: &str, version: &str| {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join("PG_VERSION"), format!("{version}\n")).unwrap();
        };
        data("data.new", "15");
        assert_eq!(choose(versions.path(), dir.path()).unwrap(), bin("15"));
        data("data", "14");
        let problem = choose(versions.path(), dir.path()).unwrap_err().to_string();
        assert!(problem.contains("PostgreSQL 14") && problem.contains("postgres.bin_dir"), "{problem}");
    }
}
