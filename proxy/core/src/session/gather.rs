//! From the client's bytes to a unit: reads messages up to the one that ends it, and what their
//! texts mean.

use std::rc::Rc;

use bytes::BytesMut;

use super::buffers::consume;
use super::statements::Statement;
use super::unit::Shape;
use super::{GATHER_LIMIT_BYTES, Session, Shared};
use crate::error::ProxyError;
use crate::route::Effects;
use crate::route::class::{Access, Reason, SqlContext};
use crate::wire::frontend::{self, Bind, Kind, Parse, Target};
use crate::wire::{self, WireError, backend};

/// Effect of a message on its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// More follows.
    No,
    /// It is complete.
    Yes,
    /// The client wants answers now.
    Flush,
    /// The client leaves.
    Leave,
}

impl From<WireError> for ProxyError {
    fn from(error: WireError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl Session {
    /// Reads on. True when the unit can be sent.
    pub(super) fn gather(&mut self, rx: &mut BytesMut, shared: &mut Shared) -> Result<bool, ProxyError> {
        loop {
            let Some((header, body)) = wire::complete(&rx[self.unit.end..])? else {
                // It is long, or nothing more of it comes.
                let opens = self.unit.input.is_open() || self.ended;
                if self.unit.end >= GATHER_LIMIT_BYTES || (self.unit.end > 0 && opens) {
                    self.unit.open();
                    return Ok(true);
                }
                return Ok(false);
            };
            if matches!(header.tag, frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL) {
                // What they stand behind may be a COPY: that is seen when its answer comes.
                if self.unit.end > 0 {
                    self.unit.open();
                    return Ok(true);
                }
                // Outside COPY the server ignores these (`PostgresMain`: probably the COPY failed and
                // the client is still sending).
                consume(rx, header.size);
                continue;
            }
            let ends = self.note(header.tag, body, shared)?;
            self.unit.end += header.size;
            match ends {
                Ends::No => {}
                Ends::Yes => return Ok(true),
                Ends::Flush => {
                    self.unit.open();
                    return Ok(true);
                }
                // What it stands behind comes first.
                Ends::Leave if self.unit.end > header.size => {
                    self.unit.end -= header.size;
                    self.unit.open();
                    return Ok(true);
                }
                Ends::Leave => {
                    self.go_end();
                    return Ok(false);
                }
            }
        }
    }

    /// Adds one message to what is known of the unit.
    pub(super) fn note(&mut self, tag: u8, body: &[u8], shared: &mut Shared) -> Result<Ends, ProxyError> {
        match tag {
            frontend::QUERY => {
                let text = frontend::query_text(body)?;
                let class = shared.classifier.classify(text, self.kept.sql);
                self.unit.shape = Shape::Simple;
                self.unit.run(&class);
                self.unit.class = Some(class);
                return Ok(Ends::Yes);
            }
            frontend::FUNCTION_CALL => {
                self.unit.shape = Shape::Simple;
                self.unit.run_unknown();
                self.unit.effects.insert(Effects::UNKNOWN);
                return Ok(Ends::Yes);
            }
            frontend::SYNC => return Ok(Ends::Yes),
            frontend::FLUSH => return Ok(Ends::Flush),
            frontend::TERMINATE => return Ok(Ends::Leave),
            frontend::COPY_DATA | frontend::COPY_DONE | frontend::COPY_FAIL => return Ok(Ends::No),
            frontend::PARSE => {
                let parse = Parse::read(body)?;
                let statement = self.intern(&parse, &body[parse.name.len() + 1..], shared);
                self.unit.mention(&statement.class);
                self.unit.renames = true;
                self.unit.parses.push((parse.name.into(), statement));
            }
            frontend::BIND => {
                let bind = Bind::read(body)?;
                match self.noted_statement(bind.statement) {
                    // Prepared before the catalog was known: it may be by now, and a statement
                    // lives as long as its session.
                    Some(statement) if matches!(statement.class.access, Access::Primary(Reason::NoCatalog)) => {
                        let class = shared.classifier.classify(statement.text(), SqlContext::default());
                        self.unit.run(&class);
                    }
                    Some(statement) => self.unit.run(&statement.class),
                    None => self.unit.run_unknown(),
                }
            }
            frontend::DESCRIBE | frontend::CLOSE => {
                let target = Target::read(tag, body)?;
                self.unit.renames |= tag == frontend::CLOSE;
                if tag == frontend::DESCRIBE
                    && target.kind == Kind::Statement
                    && let Some(statement) = self.noted_statement(target.name)
                {
                    self.unit.mention(&statement.class);
                }
            }
            frontend::EXECUTE => {
                let (_, rest) = wire::take_cstr(body).ok_or(WireError::Body('E'))?;
                if rest.len() != 4 {
                    return Err(WireError::Body('E').into());
                }
            }
            _ => return Err(WireError::Tag(tag).into()),
        }
        self.unit.shape = Shape::Extended;
        Ok(Ends::No)
    }

    fn intern(&self, parse: &Parse<'_>, definition: &[u8], shared: &mut Shared) -> Rc<Statement> {
        let Shared { classifier, interner, .. } = shared;
        let sql = self.kept.sql;
        let as_usual = sql == SqlContext::default() || sql.standard_conforming_strings && parse.text.is_ascii();
        if as_usual {
            return interner.intern(definition, parse.text.len(), self.kept.profile.analysis(), |text| {
                classifier.classify(text, SqlContext::default())
            });
        }
        // The same bytes mean something else to other sessions.
        interner.private(definition, parse.text.len(), classifier.classify(parse.text, sql))
    }

    /// The statement a name leads to, seen from the end of what is gathered.
    pub(super) fn noted_statement(&self, name: &[u8]) -> Option<Rc<Statement>> {
        let parsed = self.unit.parses.iter().rev().find(|(parsed, _)| **parsed == *name);
        match parsed {
            Some((_, statement)) => Some(statement.clone()),
            None => self.kept.held(name).map(|held| held.statement.clone()),
        }
    }

    /// After an error was told within an open unit: ignores the client up to Sync. False if more
    /// bytes are needed.
    pub(super) fn skip_to_sync(&mut self, rx: &mut BytesMut) -> bool {
        loop {
            let tag = match wire::complete(rx) {
                Ok(Some((header, _))) => {
                    consume(rx, header.size);
                    header.tag
                }
                Ok(None) => return false,
                Err(error) => {
                    self.end_with(&error.into());
                    return true;
                }
            };
            match tag {
                frontend::SYNC => {
                    backend::put_ready(&mut self.to_client, self.status);
                    let status = self.status;
                    self.forget_unit(status, rx);
                    return true;
                }
                frontend::TERMINATE => {
                    self.go_end();
                    return true;
                }
                _ => {}
            }
        }
    }
}
