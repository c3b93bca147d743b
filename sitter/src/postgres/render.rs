//! The configuration files: rendered, written, and read by a running server.

use std::os::unix::fs::MetadataExt;

use rustix::process::Signal;

use super::conf::{self, Name};
use super::error::Error;
use super::inner::Inner;
use super::{files, hba};
use crate::machine::local::ServerConfig;

/// The rendered files.
pub(super) struct Rendered {
    pub(super) id: String,
    conf: String,
    hba: String,
    ident: String,
}

/// Renders the files for `config`.
///
/// The identity does not depend on the name: it changes under way, and is not the shard's business.
pub(super) fn render(inner: &Inner, config: &ServerConfig, name: Name) -> Rendered {
    let major = inner.version.parse().unwrap_or_default();
    let own = conf::render(&inner.settings, major, inner.me, config, Name::Own);
    let hba = hba::render(&inner.settings, config.gate);
    let ident = hba::render_ident(&inner.settings.superuser, &inner.user.logins());
    let id = conf::identity([own.as_str(), hba.as_str(), ident.as_str()]);
    let conf = conf::render(&inner.settings, major, inner.me, config, name);
    let conf = format!("{conf}{} = '{id}'\n", conf::CONFIG_ID);
    Rendered { id, conf, hba, ident }
}

/// Writes them, and sees to it that PostgreSQL reads them last.
pub(super) fn write(inner: &Inner, rendered: &Rendered) -> Result<(), Error> {
    let (layout, user) = (&inner.layout, &inner.user);
    write_passfile(inner)?;
    files::replace_volatile(&layout.hba(), &rendered.hba, user)?;
    files::replace_volatile(&layout.ident(), &rendered.ident, user)?;
    files::replace_volatile(&layout.manatee_conf(), &rendered.conf, user)?;
    keep_include(inner)?;
    if clean_altered(inner)? {
        files::make_durable(&layout.altered())?;
    }
    Ok(())
}

/// Sees to it that our settings are the last of `postgresql.conf`. Whether they were not.
pub(super) fn keep_include(inner: &Inner) -> Result<bool, Error> {
    let main = inner.layout.main_conf();
    let text = match std::fs::read_to_string(&main) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(Error::io("read", &main)(error)),
    };
    let Some(text) = conf::with_include(&text) else { return Ok(false) };
    files::replace(&main, &text, &inner.user)?;
    Ok(true)
}

/// Removes from `postgresql.auto.conf`, which PostgreSQL reads last, what only Manatee may set. Whether there was any.
pub(super) fn clean_altered(inner: &Inner) -> Result<bool, Error> {
    let path = inner.layout.altered();
    let written = || std::fs::metadata(&path).and_then(|file| Ok((file.ino(), file.len(), file.modified()?))).ok();
    let before = written();
    let cleaned = std::fs::read_to_string(&path).ok().and_then(|text| conf::without_owned(&text));
    let Some((text, removed)) = cleaned else { return Ok(false) };
    if written() != before {
        // Another ALTER SYSTEM has just written it: that is not to be lost. The next look is near.
        return Ok(true);
    }
    files::replace_at_once(&path, &text, &inner.user)?;
    tracing::error!(
        settings = removed.join(", "),
        file = %path.display(),
        "removed settings that only Manatee may change, or that give up acknowledged writes: somebody used ALTER SYSTEM"
    );
    Ok(true)
}

/// Writes them, and tells PostgreSQL to read them.
pub(super) fn reload(inner: &Inner, rendered: &Rendered) -> Result<(), Error> {
    write(inner, rendered)?;
    inner.postmaster().ok_or(Error::NotAnswering)?.signal(Signal::HUP);
    Ok(())
}

/// The replication role's password, for libpq (manual, section 34.16).
pub(crate) fn write_passfile(inner: &Inner) -> Result<(), Error> {
    let password = inner.settings.replication_password.expose().replace('\\', "\\\\").replace(':', "\\:");
    let text = format!("*:*:*:{}:{password}\n", super::REPLICATION_ROLE);
    files::replace_volatile(&inner.layout.passfile(), &text, &inner.user)
}
