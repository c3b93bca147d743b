//! The OS user that PostgreSQL runs as. `postgres` refuses to run as root, so a sitter that is
//! root hands its programs, and the files they must write, to another user.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::unistd::{Gid, Uid, User};

use super::error::Error;

/// User to become.
#[derive(Clone, Debug)]
pub(crate) struct OsUser {
    /// Name of the user that PostgreSQL runs as.
    pub(crate) name: String,
    switch: Option<Switch>,
}

#[derive(Clone, Debug)]
struct Switch {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl OsUser {
    /// `configured` when we are root, else whoever we are.
    pub(crate) fn resolve(configured: &str) -> Result<Self, Error> {
        let fail = |problem: String| Error::Setting { key: "postgres.os_user".to_owned(), problem };
        let me = Uid::effective();
        if !me.is_root() {
            let user = User::from_uid(me).map_err(|error| fail(format!("our own user is not known: {error}")))?;
            let user = user.ok_or_else(|| fail(format!("user id {me} has no name")))?;
            return Ok(Self { name: user.name, switch: None });
        }
        let user = User::from_name(configured)
            .map_err(|error| fail(format!("user `{configured}` could not be looked up: {error}")))?
            .ok_or_else(|| fail(format!("there is no OS user `{configured}`")))?;
        if user.uid.is_root() {
            return Err(fail("PostgreSQL does not run as root: name another user".to_owned()));
        }
        let name = std::ffi::CString::new(configured).map_err(|_| fail("not a user name".to_owned()))?;
        let groups = nix::unistd::getgrouplist(&name, user.gid)
            .map_err(|error| fail(format!("the groups of `{configured}` are not known: {error}")))?;
        Ok(Self { name: user.name, switch: Some(Switch { uid: user.uid, gid: user.gid, groups }) })
    }

    /// Our own user, for programs that need our own rights.
    pub(crate) fn ourselves() -> Self {
        Self { name: String::new(), switch: None }
    }

    /// The user's number, if it is not our own.
    pub(crate) fn uid(&self) -> Option<u32> {
        self.switch.as_ref().map(|switch| switch.uid.as_raw())
    }

    /// OS users that the sitter's sessions come from.
    pub(crate) fn logins(&self) -> Vec<&str> {
        match self.switch {
            Some(_) => vec!["root", &self.name],
            None => vec![&self.name],
        }
    }

    /// Makes `command` run as this user, in a session of its own: no terminal's signals, and
    /// no signal meant for the sitter's group, reach it.
    pub(crate) fn apply(&self, command: &mut Command) {
        let switch = self.switch.clone();
        let become_user = move || {
            if let Some(switch) = &switch {
                nix::unistd::setgroups(&switch.groups)?;
                nix::unistd::setgid(switch.gid)?;
                nix::unistd::setuid(switch.uid)?;
            }
            nix::unistd::setsid()?;
            Ok(())
        };
        // SAFETY: between fork and exec only system calls are made; the groups were looked up and
        // their memory allocated before.
        unsafe { command.pre_exec(become_user) };
    }

    /// Makes `command` end when the thread that started it does. Those are the runtime's, which
    /// live as long as the process. Called after [`Self::apply`]: a change of user undoes it.
    pub(crate) fn die_with_parent(command: &mut Command) {
        let ask = || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(std::io::Error::from)
        };
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(ask) };
    }

    /// Gives one file or folder (not what is in it) to this user.
    pub(crate) fn own(&self, path: &Path) -> Result<(), Error> {
        match &self.switch {
            Some(switch) => std::os::unix::fs::lchown(path, Some(switch.uid.as_raw()), Some(switch.gid.as_raw()))
                .map_err(Error::io("give away", path)),
            None => Ok(()),
        }
    }
}
