//! Units the proxy answers itself: the rest of a transaction whose server is lost, and commands
//! for the proxy.

use std::rc::Rc;

use bytes::{BufMut, BytesMut};

use super::Session;
use super::state::Stage;
use super::statements::Held;
use crate::error::{ProxyError, SqlState, encode_response};
use crate::route::class::{ConsistencyName, Deallocate, ProxyCommand, Route, Statements};
use crate::route::{Class, Effects, TransactionControl};
use crate::topology::consistency::Consistency;
use crate::wire::backend::{self, TxStatus};
use crate::wire::frontend::{self, Bind, Kind, Target};
use crate::wire::{self, put_cstr, put_message};

/// Answer to a text.
enum Said {
    /// A command tag.
    Done(&'static str),
    /// One row of one column.
    Row(String, String),
    /// An error.
    Error(SqlState, String),
}

impl Session {
    /// The server of the open transaction is gone.
    pub(super) fn answer_lost_transaction(&mut self, rx: &mut BytesMut) {
        match self.ends_first() {
            Some(TransactionControl::Rollback { .. }) => {
                self.status = TxStatus::Idle;
                self.unit.started = TxStatus::Idle;
                self.staged.clear();
                self.go_attached(Stage::Preparing);
                return;
            }
            // On another server it would succeed, having committed nothing.
            Some(_) => return self.tell(&ProxyError::TransactionLost, TxStatus::Idle, rx),
            None => {}
        }
        if self.status == TxStatus::InTransaction {
            // Not told yet.
            match self.unit.alone() {
                Some(TransactionControl::Rollback { chain: false }) => {}
                // One that fails ends the transaction all the same (xact.c): no ROLLBACK follows it.
                Some(TransactionControl::Commit { .. } | TransactionControl::PrepareTransaction) => {
                    return self.tell(&ProxyError::TransactionLost, TxStatus::Idle, rx);
                }
                _ => return self.tell(&ProxyError::TransactionLost, TxStatus::Failed, rx),
            }
        }
        self.status = TxStatus::Failed;
        self.answer(rx, "ROLLBACK");
    }

    /// The transaction ended with its server, and how it ended is known.
    pub(super) fn complete_lost(&mut self, tag: &'static str, rx: &mut BytesMut) {
        self.status = TxStatus::Failed;
        self.answer(rx, tag);
    }

    /// Answers a unit of commands for the proxy. False if it is none.
    pub(super) fn answer_own_commands(&mut self, rx: &mut BytesMut) -> bool {
        if self.unit.input.is_open() {
            return false;
        }
        let commands = self.unit.proxied > 0 && self.unit.proxied == self.unit.mentions;
        let deallocates = || {
            let Some(class) = &self.unit.class else { return false };
            // DISCARD ALL deallocates too, but that is not all it does.
            matches!(class.statements, Statements::One)
                && class.effects.is_empty()
                && self.unit.mentions == 1
                && self.status != TxStatus::Failed
                && matches!(&*class.deallocates, [one] if match one {
                    Deallocate::Name(name) => self.kept.statements.contains(name.as_bytes()),
                    Deallocate::All => !self.pins.intersects(Effects::PREPARE_SQL),
                })
        };
        if !commands && !deallocates() {
            return false;
        }
        self.answer(rx, "");
        true
    }

    /// Answers every message of the unit.
    fn answer(&mut self, rx: &mut BytesMut, end_tag: &'static str) {
        let unit = rx.split_to(self.unit.end.min(rx.len())).freeze();
        self.unit.end = 0;
        let mut position = 0;
        let mut parses = std::mem::take(&mut self.unit.parses).into_iter();
        let mut bound: Option<Rc<Class>> = None;
        let mut failed = false;
        while let Ok(Some((header, body))) = wire::complete(&unit[position..]) {
            position += header.size;
            let tag = header.tag;
            if failed && !matches!(tag, frontend::SYNC) {
                if tag == frontend::PARSE {
                    parses.next();
                }
                continue;
            }
            match tag {
                frontend::QUERY => {
                    if let Some(class) = self.unit.class.clone() {
                        self.answer_text(&class, end_tag, true);
                    }
                    backend::put_ready(&mut self.to_client, self.status);
                }
                frontend::FUNCTION_CALL => {
                    self.put_answer_error(SqlState(*b"25P02"), ABORTED);
                    backend::put_ready(&mut self.to_client, self.status);
                }
                frontend::SYNC => backend::put_ready(&mut self.to_client, self.status),
                frontend::PARSE => match parses.next() {
                    Some((name, statement)) if self.may_answer(&statement.class) => {
                        // No server has seen it: any copy will do.
                        let held = Held { statement, since: 0 };
                        if name.is_empty() {
                            self.kept.unnamed = Some(held);
                        } else {
                            self.kept.statements.insert(name, held);
                        }
                        backend::put_empty(&mut self.to_client, backend::PARSE_COMPLETE);
                    }
                    _ => {
                        self.put_answer_error(SqlState(*b"25P02"), ABORTED);
                        failed = true;
                    }
                },
                frontend::BIND => {
                    bound = Bind::read(body).ok().and_then(|bind| self.known_class(bind.statement));
                    if bound.as_ref().is_some_and(|class| self.may_answer(class)) {
                        backend::put_empty(&mut self.to_client, backend::BIND_COMPLETE);
                    } else {
                        self.put_answer_error(SqlState(*b"25P02"), ABORTED);
                        failed = true;
                    }
                }
                frontend::DESCRIBE => {
                    let target = Target::read(tag, body);
                    if let Ok(Target { kind: Kind::Statement, name }) = target {
                        put_message(&mut self.to_client, backend::PARAMETER_DESCRIPTION, |out| out.put_u16(0));
                        bound = self.known_class(name).or(bound);
                    }
                    match bound.as_ref().and_then(|class| class.proxy.as_ref()) {
                        Some(ProxyCommand::Show(name)) => put_row_description(&mut self.to_client, name),
                        _ => backend::put_empty(&mut self.to_client, backend::NO_DATA),
                    }
                }
                frontend::EXECUTE => match bound.clone() {
                    Some(class) => failed = !self.answer_text(&class, end_tag, false),
                    None => {
                        self.put_answer_error(SqlState(*b"34000"), "portal does not exist");
                        failed = true;
                    }
                },
                frontend::CLOSE => {
                    if let Ok(Target { kind: Kind::Statement, name }) = Target::read(tag, body) {
                        self.kept.statements.remove(name);
                    }
                    backend::put_empty(&mut self.to_client, backend::CLOSE_COMPLETE);
                }
                _ => {}
            }
        }
        let status = self.status;
        if self.unit.input.is_open() {
            self.unit.reset(status);
            return if failed { self.go_skip() } else { self.go_gather() };
        }
        self.forget_unit(status, rx);
    }

    fn known_class(&self, name: &[u8]) -> Option<Rc<Class>> {
        self.kept.held(name).map(|held| held.statement.class.clone())
    }

    /// In a failed transaction only what ends it may be prepared and bound.
    fn may_answer(&self, class: &Class) -> bool {
        self.status != TxStatus::Failed || ends_transaction(class)
    }

    /// Runs one text. False after an error.
    fn answer_text(&mut self, class: &Class, end_tag: &'static str, describe: bool) -> bool {
        match self.evaluate(class, end_tag) {
            Said::Done(tag) => backend::put_command_complete(&mut self.to_client, tag),
            Said::Row(name, value) => {
                if describe {
                    put_row_description(&mut self.to_client, &name);
                }
                put_message(&mut self.to_client, backend::DATA_ROW, |out| {
                    out.put_u16(1);
                    out.put_u32(u32::try_from(value.len()).unwrap_or(0));
                    out.put_slice(value.as_bytes());
                });
                backend::put_command_complete(&mut self.to_client, "SHOW");
            }
            Said::Error(code, message) => {
                self.put_answer_error(code, &message);
                return false;
            }
        }
        true
    }

    fn evaluate(&mut self, class: &Class, end_tag: &'static str) -> Said {
        if self.status == TxStatus::Failed && self.state.link().is_none() {
            if !ends_transaction(class) {
                return Said::Error(SqlState(*b"25P02"), ABORTED.to_owned());
            }
            self.status = TxStatus::Idle;
            return Said::Done(end_tag);
        }
        match &class.proxy {
            Some(ProxyCommand::SetRoute(route)) => {
                self.kept.route = route.unwrap_or_default();
                Said::Done("SET")
            }
            Some(ProxyCommand::SetConsistency(name)) => {
                self.kept.consistency = name.map(|name| match name {
                    ConsistencyName::Session => Consistency::Session,
                    ConsistencyName::Strong => Consistency::Strong,
                    ConsistencyName::Eventual => Consistency::Eventual,
                });
                Said::Done("SET")
            }
            Some(ProxyCommand::Show(name)) => match &**name {
                "route" => {
                    let route = match self.kept.route {
                        Route::Auto => "auto",
                        Route::Primary => "primary",
                        Route::Standby => "standby",
                    };
                    Said::Row("manatee.route".to_owned(), route.to_owned())
                }
                "consistency" => Said::Row("manatee.consistency".to_owned(), self.consistency().as_str().to_owned()),
                other => Said::Error(
                    SqlState(*b"42704"),
                    format!("unrecognized configuration parameter \"manatee.{other}\""),
                ),
            },
            Some(ProxyCommand::Refused { sqlstate, message }) => {
                Said::Error(SqlState::parse(sqlstate.as_bytes()), message.to_string())
            }
            None => match &*class.deallocates {
                [Deallocate::Name(name)] => {
                    self.kept.statements.remove(name.as_bytes());
                    Said::Done("DEALLOCATE")
                }
                _ => {
                    self.kept.statements.clear();
                    Said::Done("DEALLOCATE ALL")
                }
            },
        }
    }

    fn put_answer_error(&mut self, code: SqlState, message: &str) {
        encode_response(&mut self.to_client, b'E', "ERROR", code, message, None);
    }
}

pub(super) const ABORTED: &str = "current transaction is aborted, commands ignored until end of transaction block";

fn ends_transaction(class: &Class) -> bool {
    use crate::route::Control::Alone;
    matches!(
        class.control,
        Alone(TransactionControl::Commit { chain: false } | TransactionControl::Rollback { chain: false })
    )
}

/// One column of type text.
fn put_row_description(out: &mut BytesMut, name: &str) {
    const TEXT_OID: u32 = 25;
    put_message(out, backend::ROW_DESCRIPTION, |out| {
        out.put_u16(1);
        put_cstr(out, name.as_bytes());
        out.put_u32(0);
        out.put_u16(0);
        out.put_u32(TEXT_OID);
        out.put_i16(-1);
        out.put_i32(-1);
        out.put_u16(0);
    });
}
