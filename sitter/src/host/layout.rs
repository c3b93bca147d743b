//! Places of a peer's files on its host.

use std::path::PathBuf;

/// Places of a peer's files.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Below `dir`.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }
    /// The peer's folder.
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }
    /// PGDATA.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
    /// A data directory being made; renamed to [`Self::data`] when complete.
    pub fn staging(&self) -> PathBuf {
        self.dir.join("data.new")
    }
    /// Data sets set aside.
    pub fn isolated(&self) -> PathBuf {
        self.dir.join("isolated")
    }
    /// Socket, rendered settings and the sitter's own records.
    pub fn run(&self) -> PathBuf {
        self.dir.join("run")
    }
    /// PostgreSQL's Unix socket.
    pub fn socket(&self, port: u16) -> PathBuf {
        self.run().join(format!(".s.PGSQL.{port}"))
    }
    /// `postgresql.conf`.
    pub fn main_conf(&self) -> PathBuf {
        self.data().join("postgresql.conf")
    }
    /// File that ALTER SYSTEM writes; PostgreSQL reads it last.
    pub fn altered(&self) -> PathBuf {
        self.data().join("postgresql.auto.conf")
    }
    /// Settings included at the end of `postgresql.conf`.
    pub fn manatee_conf(&self) -> PathBuf {
        self.run().join("manatee.conf")
    }
    /// File of rules for who may connect.
    pub fn hba(&self) -> PathBuf {
        self.run().join("pg_hba.conf")
    }
    /// File of the OS users that may be the superuser.
    pub fn ident(&self) -> PathBuf {
        self.run().join("pg_ident.conf")
    }
    /// Password of the replication role, in libpq's format.
    pub fn passfile(&self) -> PathBuf {
        self.run().join("passfile")
    }
    /// The configuration last rendered.
    pub fn record(&self) -> PathBuf {
        self.run().join("config.json")
    }
    /// Present while the data directory is being overwritten in place: it must never be started.
    pub fn incomplete(&self) -> PathBuf {
        self.run().join("incomplete")
    }
    /// Present while the data directory is our own first setup, never started.
    pub fn fresh(&self) -> PathBuf {
        self.run().join("fresh")
    }
    /// Note on the stream whose beginning the staging place holds.
    pub fn transfer(&self) -> PathBuf {
        self.run().join("transfer.json")
    }
    /// PostgreSQL's log.
    pub fn log(&self) -> PathBuf {
        self.run().join("postgresql.log")
    }
}
