//! Finding the programs the lab runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Debian's ZooKeeper; its manifest names the other jars.
pub const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";

/// Manatee's own programs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// `manatee-sitter`.
    pub sitter: PathBuf,
    /// `manatee-proxy`.
    pub proxy: PathBuf,
    /// `manatee-adm`.
    pub adm: PathBuf,
}

impl Binaries {
    /// The programs in `folder`; by default beside this executable, or one level up (where test
    /// executables run from `deps/`).
    pub fn find(folder: Option<&Path>) -> Result<Self> {
        let executable = std::env::current_exe().context("cannot tell where this program is")?;
        let beside = executable.parent().unwrap_or(Path::new("."));
        let folders: Vec<&Path> = match folder {
            Some(folder) => vec![folder],
            None => std::iter::once(beside).chain(beside.parent()).collect(),
        };
        let find = |name: &str| {
            folders
                .iter()
                .map(|folder| folder.join(name))
                .find(|path| path.is_file())
                .with_context(|| format!("{name} is not in {}: run `make build` first", folders[0].display()))
        };
        Ok(Self { sitter: find("manatee-sitter")?, proxy: find("manatee-proxy")?, adm: find("manatee-adm")? })
    }
}

/// Says what is missing of the programs that come from the system.
pub fn check_system() -> Result<()> {
    if !Path::new(ZOOKEEPER_JAR).exists() {
        bail!("ZooKeeper is not installed ({ZOOKEEPER_JAR}): apt-get install zookeeper");
    }
    in_path("java").context("apt-get install default-jre-headless")?;
    postgres_folder().map(|_| ())
}

/// Names a folder of PostgreSQL's programs to use instead of the system's.
pub const POSTGRES_BIN: &str = "MANATEE_POSTGRES_BIN";

/// The folder of PostgreSQL's programs: of [`POSTGRES_BIN`], or the newest where Debian puts them, or the PATH's.
pub fn postgres_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(POSTGRES_BIN) {
        return Ok(folder.into());
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            let folder = entry.path().join("bin");
            folder.join("postgres").is_file().then_some((version, folder))
        })
        .collect();
    versions.sort();
    if let Some((_, folder)) = versions.pop() {
        return Ok(folder);
    }
    let postgres = in_path("postgres").context("PostgreSQL is not installed: apt-get install postgresql")?;
    Ok(postgres.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Finds a program in the PATH.
pub fn in_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not in the PATH"))
}
