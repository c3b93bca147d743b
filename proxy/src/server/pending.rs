//! Logins under way on one thread. There may be so many at once; one more makes the oldest leave.
//!
//! Whoever floods us with connections and says nothing holds the oldest ones, while a real login takes
//! milliseconds: so the flood evicts itself. (A fixed limit would keep real clients out until
//! `auth.login_timeout`.) Whoever has proved itself and waits for a server has nothing to fear.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::Notify;

/// The logins, oldest first. Of one thread.
#[derive(Debug, Default)]
pub(super) struct Pending(RefCell<VecDeque<Rc<Notify>>>);

/// A login's place; given up when dropped.
pub(super) struct Ticket<'a> {
    pending: &'a Pending,
    evicted: Rc<Notify>,
}

impl Pending {
    /// Takes a place; the oldest leaves if there are `most` already.
    pub(super) fn enter(&self, most: usize) -> Ticket<'_> {
        let mut queue = self.0.borrow_mut();
        while queue.len() >= most.max(1) {
            if let Some(oldest) = queue.pop_front() {
                oldest.notify_one();
            }
        }
        let evicted = Rc::new(Notify::new());
        queue.push_back(evicted.clone());
        Ticket { pending: self, evicted }
    }
}

impl Ticket<'_> {
    /// Until the place is needed.
    pub(super) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Gives the place up: the client is known, and nobody makes it leave any more.
    pub(super) fn settle(&self) {
        // Logins end about in the order they began: near the front.
        let mut queue = self.pending.0.borrow_mut();
        if let Some(index) = queue.iter().position(|other| Rc::ptr_eq(other, &self.evicted)) {
            queue.remove(index);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_leaves() {
        let pending = Pending::default();
        let tickets = [pending.enter(3), pending.enter(3), pending.enter(3)];
        let [first, second, _third] = &tickets;
        let fourth = pending.enter(3);
        first.evicted().await;
        let waits = tokio::time::timeout(std::time::Duration::from_millis(1), second.evicted()).await;
        assert!(waits.is_err());
        drop(fourth);
        let _fifth = pending.enter(3);
        assert_eq!(pending.0.borrow().len(), 3, "a place that was given up is free");
        tickets[2].settle();
        let _more = [pending.enter(3), pending.enter(3), pending.enter(3)];
        let waits = tokio::time::timeout(std::time::Duration::from_millis(1), tickets[2].evicted()).await;
        assert!(waits.is_err(), "it had settled");
        drop(tickets);
        assert_eq!(pending.0.borrow().len(), 3);
    }
}
