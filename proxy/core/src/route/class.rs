//! Meaning of a text to the proxy: where it may run, and what it leaves behind on the server.
//!
//! A *text* is one simple-query string (possibly of several statements) or the text of one Parse.
//! A [`Class`] holds nothing of a text's literals except where they decide something (the value of
//! a `SET`, a name in `DEALLOCATE`); it is therefore shared by all texts with the same fingerprint.

use std::fmt;

/// Servers on which a text may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing in it needs the primary: reads, and statements that are the same everywhere
    /// (`SET`, `COMMIT`, `FETCH`, an empty text).
    ReadOnly,
    /// It needs the primary, or is not known not to.
    Primary(Reason),
}

impl Access {
    /// True if it may go to a standby.
    #[must_use]
    pub fn is_read_only(self) -> bool {
        matches!(self, Self::ReadOnly)
    }

    /// The stricter of two; of two reasons, the first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match self {
            Self::ReadOnly => other,
            Self::Primary(_) => self,
        }
    }
}

/// Reason why a text needs the primary: few values, fit for a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// INSERT, UPDATE, DELETE, MERGE, COPY FROM, at the top or in a CTE.
    Write,
    /// A schema or cluster command: CREATE, GRANT, VACUUM, CHECKPOINT …
    Command,
    /// FOR UPDATE/SHARE, LOCK, an advisory lock.
    Lock,
    /// BEGIN without READ ONLY, or something else that a standby cannot do for a transaction.
    Transaction,
    /// A function that is volatile and not known to be harmless, or not known at all.
    Function,
    /// Something that differs between primary and standby: statistics, WAL positions, settings.
    Node,
    /// A relation that a standby cannot read or whose view calls such a function.
    Relation,
    /// LISTEN, PREPARE, EXECUTE, temporary objects …: bound to a session that stays on the primary.
    Session,
    /// DO, CALL, statements this proxy does not know.
    Opaque,
    /// The parser refused it; the primary shall say what is wrong.
    Unparsable,
    /// Too long, nested too deep, or in an encoding in which SQL cannot be read.
    Unreadable,
    /// The database's functions and views have not been read yet.
    NoCatalog,
    /// A standby answered 25006 (or the like) before.
    Learned,
}

impl Reason {
    /// The metric label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Command => "command",
            Self::Lock => "lock",
            Self::Transaction => "transaction",
            Self::Function => "function",
            Self::Node => "node",
            Self::Relation => "relation",
            Self::Session => "session",
            Self::Opaque => "opaque",
            Self::Unparsable => "unparsable",
            Self::Unreadable => "unreadable",
            Self::NoCatalog => "no_catalog",
            Self::Learned => "learned",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A transaction-control statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionControl {
    /// BEGIN, START TRANSACTION.
    Begin {
        /// READ ONLY: true; READ WRITE: false; not said: none.
        read_only: Option<bool>,
        /// ISOLATION LEVEL SERIALIZABLE, which a hot standby refuses.
        serializable: bool,
    },
    /// COMMIT, END.
    Commit {
        /// AND CHAIN: a new transaction begins at once, with the same characteristics.
        chain: bool,
    },
    /// ROLLBACK, ABORT.
    Rollback {
        /// AND CHAIN: as for commit.
        chain: bool,
    },
    /// SAVEPOINT, RELEASE, ROLLBACK TO.
    Savepoint,
    /// PREPARE TRANSACTION: ends the transaction on this server.
    PrepareTransaction,
    /// COMMIT PREPARED: outside a transaction; in doubt like a COMMIT.
    CommitPrepared,
    /// ROLLBACK PREPARED.
    RollbackPrepared,
    /// SET TRANSACTION: characteristics of the transaction at hand only.
    SetTransaction {
        /// READ ONLY: true; READ WRITE: false; not said: none.
        read_only: Option<bool>,
    },
}

/// The transaction control in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// None: in autocommit the text is a transaction of its own.
    None,
    /// The text is this one statement and nothing else.
    Alone(TransactionControl),
    /// Several statements, at least one of which controls transactions.
    Mixed {
        /// The first statement, if that is such a one (`BEGIN; …`).
        first: Option<TransactionControl>,
        /// A COMMIT, COMMIT PREPARED or PREPARE TRANSACTION is among them: a lost answer leaves it in doubt.
        commits: bool,
    },
}

impl Control {
    /// True if a lost answer leaves an explicit commit in doubt.
    #[must_use]
    pub fn commits(self) -> bool {
        use TransactionControl::{Commit, CommitPrepared, PrepareTransaction};
        match self {
            Self::None => false,
            Self::Alone(one) => matches!(one, Commit { .. } | CommitPrepared | PrepareTransaction),
            Self::Mixed { commits, .. } => commits,
        }
    }
}

/// Effects of a text on the server besides settings: a set of flags.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Effects(u32);

impl Effects {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Creates a temporary table, view, sequence … (pin until DISCARD TEMP or ALL, or the session's end).
    pub const TEMP_OBJECT: Self = Self(1);
    /// Takes a session-level advisory lock, or tries to (pin).
    pub const ADVISORY_LOCK: Self = Self(1 << 1);
    /// Releases session-level advisory locks (`pg_advisory_unlock…`).
    pub const ADVISORY_UNLOCK: Self = Self(1 << 2);
    /// Declares a cursor WITH HOLD (pin).
    pub const HOLD_CURSOR: Self = Self(1 << 3);
    /// CLOSE, CLOSE ALL.
    pub const CLOSE_CURSOR: Self = Self(1 << 4);
    /// LISTEN (pin).
    pub const LISTEN: Self = Self(1 << 5);
    /// UNLISTEN of one channel.
    pub const UNLISTEN: Self = Self(1 << 6);
    /// UNLISTEN *.
    pub const UNLISTEN_ALL: Self = Self(1 << 7);
    /// SQL-level PREPARE (pin).
    pub const PREPARE_SQL: Self = Self(1 << 8);
    /// LOAD of a library: stays in the server process; it cannot be undone.
    pub const LOAD: Self = Self(1 << 9);
    /// SET ROLE or SET SESSION AUTHORIZATION (also in `settings`, as `role` and `session_authorization`).
    pub const ROLE: Self = Self(1 << 10);
    /// Reads what the session's own `nextval` left (`lastval`, `currval`).
    pub const SEQUENCE_READ: Self = Self(1 << 11);
    /// Calls `nextval` or `setval`.
    pub const SEQUENCE_WRITE: Self = Self(1 << 12);
    /// Changes settings in a way the text does not show (`set_config($1, …)` for the session).
    pub const SETTINGS_UNKNOWN: Self = Self(1 << 13);
    /// May have done anything to the session (DO, CALL, volatile user functions, unparsable texts):
    /// the server is reset before another client gets it.
    pub const UNKNOWN: Self = Self(1 << 14);
    /// Changes the schema: prepared statements and the catalog may be out of date afterwards.
    pub const DDL: Self = Self(1 << 15);
    /// DISCARD ALL (includes the ones below and ResetAll, UNLISTEN *, DEALLOCATE ALL, unlocking).
    pub const DISCARD_ALL: Self = Self(1 << 16);
    /// DISCARD TEMP.
    pub const DISCARD_TEMP: Self = Self(1 << 17);
    /// DISCARD PLANS.
    pub const DISCARD_PLANS: Self = Self(1 << 18);
    /// DISCARD SEQUENCES.
    pub const DISCARD_SEQUENCES: Self = Self(1 << 19);
    /// `setseed`: the session's `random()` is seeded.
    pub const SEED: Self = Self(1 << 20);
    /// It could not be read: whatever could bind the session to its server may have been done.
    pub const UNREAD: Self = Self(1 << 22);
    /// It is not known which changes of settings are in force: of a transaction, or of a text that may have made them
    /// or not. All have names that the server can be asked for.
    pub const SETTINGS_DOUBT: Self = Self(1 << 21);
    /// May change settings of the session in a way that its text does not show: they are read off the server
    /// afterwards.
    pub const MAY_SET: Self = Self(1 << 24);
    /// No rollback undoes all it does: it commits on its way, or acts on something outside of the transaction
    /// (another backend, a file, the server). Such a statement is run again only if it cannot have begun.
    pub const NOT_UNDONE: Self = Self(1 << 23);

    /// Effects that bind the session to its server until they are gone.
    pub const PINS: Self = Self(
        Self::TEMP_OBJECT.0
            | Self::ADVISORY_LOCK.0
            | Self::HOLD_CURSOR.0
            | Self::LISTEN.0
            | Self::PREPARE_SQL.0
            | Self::SETTINGS_UNKNOWN.0
            | Self::SEED.0,
    );

    /// Effects that leave the server unfit for another client before a reset (`DISCARD ALL`), besides settings.
    pub const TAINTS: Self = Self(Self::PINS.0 | Self::UNKNOWN.0 | Self::ROLE.0);

    const NAMES: [(Self, &'static str); 25] = [
        (Self::TEMP_OBJECT, "TEMP_OBJECT"),
        (Self::ADVISORY_LOCK, "ADVISORY_LOCK"),
        (Self::ADVISORY_UNLOCK, "ADVISORY_UNLOCK"),
        (Self::HOLD_CURSOR, "HOLD_CURSOR"),
        (Self::CLOSE_CURSOR, "CLOSE_CURSOR"),
        (Self::LISTEN, "LISTEN"),
        (Self::UNLISTEN, "UNLISTEN"),
        (Self::UNLISTEN_ALL, "UNLISTEN_ALL"),
        (Self::PREPARE_SQL, "PREPARE_SQL"),
        (Self::LOAD, "LOAD"),
        (Self::ROLE, "ROLE"),
        (Self::SEQUENCE_READ, "SEQUENCE_READ"),
        (Self::SEQUENCE_WRITE, "SEQUENCE_WRITE"),
        (Self::SETTINGS_UNKNOWN, "SETTINGS_UNKNOWN"),
        (Self::UNKNOWN, "UNKNOWN"),
        (Self::DDL, "DDL"),
        (Self::DISCARD_ALL, "DISCARD_ALL"),
        (Self::DISCARD_TEMP, "DISCARD_TEMP"),
        (Self::DISCARD_PLANS, "DISCARD_PLANS"),
        (Self::DISCARD_SEQUENCES, "DISCARD_SEQUENCES"),
        (Self::SEED, "SEED"),
        (Self::UNREAD, "UNREAD"),
        (Self::SETTINGS_DOUBT, "SETTINGS_DOUBT"),
        (Self::NOT_UNDONE, "NOT_UNDONE"),
        (Self::MAY_SET, "MAY_SET"),
    ];

    /// True if nothing is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if any of `other` is set.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of `self` that are in `other` too.
    #[must_use]
    pub const fn both(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of `self` not in `other`.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Adds `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(Self::NAMES.iter().filter(|(flag, _)| self.intersects(*flag)).map(|(_, name)| name))
            .finish()
    }
}

/// Lifetime of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To the end of the session; undone if the transaction rolls back.
    Session,
    /// SET LOCAL: to the end of the transaction; a no-op outside one.
    Transaction,
}

/// A change of settings, in the order of the text. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SettingChange {
    /// SET, or `set_config` with literals.
    Set {
        /// The setting.
        name: Box<str>,
        /// The value as `set_config(name, value, …)` takes it (lists already joined and quoted).
        value: Box<str>,
        /// Its lifetime.
        scope: Scope,
    },
    /// RESET name, SET name TO DEFAULT.
    Reset {
        /// The setting.
        name: Box<str>,
        /// Its lifetime.
        scope: Scope,
    },
    /// RESET ALL (which leaves role and session authorization alone).
    ResetAll,
}

/// DEALLOCATE: of statements made by SQL or by Parse, which share one name space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deallocate {
    /// One.
    Name(Box<str>),
    /// All.
    All,
}

/// Request in a leading comment `/* manatee: … */`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// `primary`.
    Primary,
    /// `standby`: also for texts the classifier would send to the primary. A 25006 is the client's then.
    Standby,
}

/// `manatee.route`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// By class.
    #[default]
    Auto,
    /// Everything to the primary.
    Primary,
    /// Everything to a standby.
    Standby,
}

/// `manatee.consistency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsistencyName {
    /// Read your own writes, never back in time.
    Session,
    /// Primary only, or a sync that applies before acknowledging.
    Strong,
    /// Any standby within `max_lag`.
    Eventual,
}

/// Something for the proxy itself; it never reaches a server. The text has no other statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProxyCommand {
    /// SET manatee.route; none: back to the default.
    SetRoute(Option<Route>),
    /// SET manatee.consistency; none: back to the default.
    SetConsistency(Option<ConsistencyName>),
    /// SHOW manatee.x: the name after the dot, in lower case.
    Show(Box<str>),
    /// Refused: the message for the client (SQLSTATE 22023 for a bad value or name, 0A000 for a bad place).
    Refused {
        /// The SQLSTATE.
        sqlstate: &'static str,
        /// Problem.
        message: Box<str>,
    },
}

/// Direction of a COPY over the client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyDirection {
    /// COPY … FROM STDIN: the client sends.
    In,
    /// COPY … TO STDOUT: the server sends.
    Out,
}

/// Number of statements in a text, as far as that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statements {
    /// None: an empty text (answered with `EmptyQueryResponse`).
    None,
    /// One.
    One,
    /// Several.
    Many,
    /// It could not be parsed.
    Unknown,
}

/// Class of a text: its meaning to the proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Servers on which it may run.
    pub access: Access,
    /// Number of its statements.
    pub statements: Statements,
    /// Its transaction control.
    pub control: Control,
    /// Effects on the server, besides settings.
    pub effects: Effects,
    /// Settings it changes.
    pub settings: Box<[SettingChange]>,
    /// Custom settings (`app.tenant`) that it may change without showing how: no view lists those, so the server is
    /// asked for them by name.
    pub may_set: Box<[Box<str>]>,
    /// Prepared statements it removes.
    pub deallocates: Box<[Deallocate]>,
    /// Databases that nobody may be connected to while it runs: DROP DATABASE, CREATE DATABASE … TEMPLATE, ALTER
    /// DATABASE … RENAME TO, … SET TABLESPACE.
    pub vacates: Box<[Box<str>]>,
    /// The hint at its start.
    pub hint: Option<Hint>,
    /// A COPY over the connection.
    pub copy: Option<CopyDirection>,
    /// For the proxy itself.
    pub proxy: Option<ProxyCommand>,
}

impl Class {
    /// A class that needs the primary for `reason` and has no other meaning.
    #[must_use]
    pub fn primary(reason: Reason) -> Self {
        Self { access: Access::Primary(reason), ..Self::read_only() }
    }

    /// A plain read of one statement.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            access: Access::ReadOnly,
            statements: Statements::One,
            control: Control::None,
            effects: Effects::NONE,
            settings: Box::default(),
            may_set: Box::default(),
            deallocates: Box::default(),
            vacates: Box::default(),
            hint: None,
            copy: None,
            proxy: None,
        }
    }

    /// A text that could not be read: the primary, and the server is reset afterwards. Its statements,
    /// and with them a commit, are unknown. What the server will refuse too (a syntax error) sets nothing;
    /// what is only too much for this proxy may.
    #[must_use]
    pub fn unknown(reason: Reason) -> Self {
        let effects = match reason {
            // The server will refuse it.
            Reason::Unparsable => Effects::UNKNOWN,
            _ => Effects::UNKNOWN.union(Effects::UNREAD),
        };
        Self { effects, statements: Statements::Unknown, ..Self::primary(reason) }
    }

    /// True if it may leave something in the server process that nobody can read off it: sequence values
    /// (any write can, by defaults and triggers), what a function keeps.
    #[must_use]
    pub fn may_leave_traces(&self) -> bool {
        let may_write = matches!(
            self.access,
            Access::Primary(
                Reason::Write
                    | Reason::Function
                    | Reason::Opaque
                    | Reason::NoCatalog
                    | Reason::Unreadable
                    | Reason::Learned
            )
        );
        may_write || self.effects.intersects(Effects::SEQUENCE_WRITE.union(Effects::UNKNOWN))
    }

    /// True for a plain read: may go to a standby, no transaction control, leaves nothing behind.
    /// Such a text may be run again elsewhere while none of its rows was forwarded.
    #[must_use]
    pub fn is_plain_read(&self) -> bool {
        self.access.is_read_only()
            && self.control == Control::None
            && self.effects.is_empty()
            && self.settings.is_empty()
            && self.deallocates.is_empty()
    }
}

/// Settings of a session that decide how its texts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqlContext {
    /// `standard_conforming_strings`: backslashes in '…' are ordinary.
    pub standard_conforming_strings: bool,
    /// Encoding of the client's characters beyond ASCII.
    pub encoding: TextEncoding,
}

impl Default for SqlContext {
    fn default() -> Self {
        Self { standard_conforming_strings: true, encoding: TextEncoding::Utf8 }
    }
}

/// Client encoding (PostgreSQL manual, 24.3), as far as reading SQL depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TextEncoding {
    /// UTF-8, or `SQL_ASCII`: bytes that the server takes as they are.
    #[default]
    Utf8,
    /// LATIN1: each byte is the character of that number.
    Latin1,
    /// No byte below 0x80 is part of another character, so SQL can be read; what stands in names and literals is
    /// not known as characters.
    AsciiSafe,
    /// The encodings that are not allowed on a server (24.3.1): SQL cannot be read byte by byte.
    Unsafe,
}

impl TextEncoding {
    /// By the value of `client_encoding`, however it is spelt (`pg_char_to_encoding` in encnames.c).
    #[must_use]
    pub fn named(client_encoding: &str) -> Self {
        let name: String =
            client_encoding.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        match name.as_str() {
            "utf8" | "unicode" | "sqlascii" => Self::Utf8,
            "latin1" | "iso88591" => Self::Latin1,
            "sjis" | "shiftjis" | "mskanji" | "win932" | "windows932" | "big5" | "win950" | "windows950" | "gbk"
            | "win936" | "windows936" | "uhc" | "win949" | "windows949" | "gb18030" | "johab" | "shiftjis2004" => {
                Self::Unsafe
            }
            _ => Self::AsciiSafe,
        }
    }
}

/// True if a session with this setting can only use the primary: a hot standby cannot do it.
#[must_use]
pub fn setting_needs_primary(name: &str, value: &str) -> bool {
    match name {
        "default_transaction_isolation" | "transaction_isolation" => value.eq_ignore_ascii_case("serializable"),
        _ => false,
    }
}
