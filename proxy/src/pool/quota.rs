//! Limits over several pools: connections to a node altogether, of one database there, of one role there.
//!
//! A pool that may not open another connection because of such a limit has the one closed that has been
//! idle for longest among the others under it. If none is idle, its sessions queue with everybody else's
//! under that limit: whoever has waited longest is served first, in whichever pool it waits. A connection
//! that comes back to one pool is closed if somebody has waited longer in another and only the limit is in
//! the way.
//!
//! Owned by one thread, like the pools.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::server::NodePool;
use crate::auth::Identity;
use crate::topology::Node;

/// Server connections of one thread to one node at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Altogether.
    pub per_node: usize,
    /// To one database.
    pub per_database: usize,
    /// Of one role.
    pub per_user: usize,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self { per_node: usize::MAX, per_database: usize::MAX, per_user: usize::MAX };
}

/// Subject of a limit, at one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    All,
    Database(Arc<str>),
    User(Arc<str>),
}

impl Subject {
    fn most(&self, limits: Limits) -> usize {
        match self {
            Self::All => limits.per_node,
            Self::Database(_) => limits.per_database,
            Self::User(_) => limits.per_user,
        }
    }
}

/// One limit, and how much of it is used.
#[derive(Debug)]
pub struct Quota {
    most: Cell<usize>,
    open: Cell<usize>,
    pools: RefCell<Vec<Weak<NodePool>>>,
}

impl Quota {
    /// For so many connections.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most: Cell::new(most), open: Cell::new(0), pools: RefCell::default() })
    }

    /// Whether another one may be opened.
    pub(super) fn has_room(&self) -> bool {
        self.open.get() < self.most.get()
    }

    /// Whether there are more than allowed now.
    pub(super) fn is_exceeded(&self) -> bool {
        self.open.get() > self.most.get()
    }

    pub(super) fn take(&self) {
        self.open.set(self.open.get() + 1);
    }

    pub(super) fn give_back(&self) {
        self.open.set(self.open.get() - 1);
    }

    pub(super) fn enter(&self, pool: &Rc<NodePool>) {
        let mut pools = self.pools.borrow_mut();
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Rc::downgrade(pool));
    }

    /// The pools under it.
    pub(super) fn pools(&self) -> Vec<Rc<NodePool>> {
        self.pools.borrow().iter().filter_map(Weak::upgrade).collect()
    }
}

/// All limits of one thread.
#[derive(Debug, Default)]
pub(super) struct Quotas(RefCell<HashMap<(Node, Subject), Rc<Quota>>>);

impl Quotas {
    /// Those that a pool is under.
    pub(super) fn of(&self, identity: &Identity, node: Node, limits: Limits) -> Vec<Rc<Quota>> {
        let subjects =
            [Subject::All, Subject::Database(identity.database.clone()), Subject::User(identity.user.clone())];
        let mut quotas = self.0.borrow_mut();
        let of = |subject: Subject| {
            let most = subject.most(limits);
            quotas.entry((node, subject)).or_insert_with(|| Quota::new(most)).clone()
        };
        subjects.into_iter().map(of).collect()
    }

    /// Other limits from now on.
    pub(super) fn resize(&self, limits: Limits) {
        for ((_, subject), quota) in self.0.borrow().iter() {
            quota.most.set(subject.most(limits));
        }
    }

    /// Forgets those that no pool is under any more.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|_, quota| Rc::strong_count(quota) > 1);
    }
}

#[cfg(test)]
#[path = "quota_tests.rs"]
mod tests;
