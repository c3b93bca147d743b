//! Logins under way on one thread. There may be so many at once; for one more, one that has had long enough
//! leaves, the oldest first, or it is waited for.
//!
//! Connections that have not logged in yet, bounded. A flood of connections that say nothing holds the oldest ones,
//! while a real login takes milliseconds: so the flood evicts itself. (A fixed limit would keep real clients out until
//! `auth.login_timeout`.) When everybody comes back at once, they all have something to say, and nobody is turned away:
//! they are let in as fast as logins are done, the others wait in the backlog. Whoever has proved itself and waits for
//! a server has nothing to fear.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Longest silence of a new connection while others wait: a client says something as soon as it is connected.
const FIRST_BYTE_BUDGET: Duration = Duration::from_secs(1);
/// Longest time for a login while others wait. The hosts of many clients that come back at once are busy: each
/// login costs a client some thousand hashes.
const LOGIN_BUDGET: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Login {
    /// Its begin.
    since: Instant,
    /// It is at work and the client has not said anything.
    is_silent: Cell<bool>,
    evicted: Notify,
}

impl Login {
    /// Moment at which it has had long enough.
    fn until(&self) -> Instant {
        self.since + if self.is_silent.get() { FIRST_BYTE_BUDGET } else { LOGIN_BUDGET }
    }
}

/// The logins, oldest first. Of one thread.
#[derive(Debug, Default)]
pub(super) struct LoginQueue {
    queue: RefCell<VecDeque<Rc<Login>>>,
    /// A place was given up.
    freed: Notify,
}

/// A login's place; given up when dropped.
pub(super) struct LoginSlotGuard {
    pending: Rc<LoginQueue>,
    login: Rc<Login>,
}

impl LoginQueue {
    /// Waits until there are fewer than `most`. May be dropped at any time.
    pub(super) async fn wait_for_slot(&self, most: usize) {
        while let Err(until) = self.make_room(most, Instant::now()) {
            // Ready or not, it is looked at again.
            let _ = tokio::time::timeout_at(until.into(), self.freed.notified()).await;
        }
    }

    /// Makes somebody leave if there are `most`; or says when somebody will have had long enough.
    fn make_room(&self, most: usize, now: Instant) -> Result<(), Instant> {
        let mut queue = self.queue.borrow_mut();
        while queue.len() >= most.max(1) {
            let Some(index) = queue.iter().position(|login| login.until() <= now) else {
                return Err(queue.iter().map(|login| login.until()).min().unwrap_or(now));
            };
            if let Some(login) = queue.remove(index) {
                login.evicted.notify_one();
            }
        }
        Ok(())
    }

    /// Takes a place.
    pub(super) fn enter(self: &Rc<Self>, now: Instant) -> LoginSlotGuard {
        let login = Rc::new(Login { since: now, is_silent: Cell::new(false), evicted: Notify::new() });
        self.queue.borrow_mut().push_back(login.clone());
        LoginSlotGuard { pending: self.clone(), login }
    }
}

impl LoginSlotGuard {
    /// Until the place is needed.
    pub(super) async fn evicted(&self) {
        self.login.evicted.notified().await;
    }

    /// The client has said nothing so far, or has said something now.
    pub(super) fn set_silent(&self, is_silent: bool) {
        self.login.is_silent.set(is_silent);
    }

    /// Gives the place up: the client is known, and nobody makes it leave any more.
    pub(super) fn release(&self) {
        // Logins end about in the order they began: near the front.
        let mut queue = self.pending.queue.borrow_mut();
        if let Some(index) = queue.iter().position(|other| Rc::ptr_eq(other, &self.login)) {
            queue.remove(index);
            self.pending.freed.notify_one();
        }
    }
}

impl Drop for LoginSlotGuard {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_evicted(ticket: &LoginSlotGuard) -> bool {
        tokio::time::timeout(Duration::from_millis(1), ticket.evicted()).await.is_ok()
    }

    #[tokio::test]
    async fn the_silent_leave_before_those_who_speak() {
        let (pending, begin) = (Rc::new(LoginQueue::default()), Instant::now());
        let tickets: Vec<LoginSlotGuard> = (0..3).map(|_| pending.enter(begin)).collect();
        // Nobody has had a chance to speak yet: the next one waits.
        assert_eq!(pending.make_room(3, begin), Err(begin + LOGIN_BUDGET));
        for ticket in &tickets {
            ticket.set_silent(true);
        }
        tickets[0].set_silent(false);
        assert_eq!(pending.make_room(3, begin), Err(begin + FIRST_BYTE_BUDGET));
        assert_eq!(pending.make_room(3, begin + FIRST_BYTE_BUDGET), Ok(()));
        assert!(is_evicted(&tickets[1]).await, "the oldest of the silent");
        assert!(!is_evicted(&tickets[0]).await && !is_evicted(&tickets[2]).await);
        let _fourth = pending.enter(begin + FIRST_BYTE_BUDGET);
        assert_eq!(pending.make_room(3, begin + LOGIN_BUDGET), Ok(()));
        assert!(is_evicted(&tickets[0]).await, "the oldest of all");
    }

    #[tokio::test]
    async fn whoever_is_known_stays_and_makes_room() {
        let (pending, begin) = (Rc::new(LoginQueue::default()), Instant::now());
        let [first, second] = [pending.enter(begin), pending.enter(begin)];
        let next = pending.wait_for_slot(2);
        tokio::pin!(next);
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut next).await.is_err(), "it waits");
        first.release();
        next.await;
        let third = pending.enter(begin);
        assert_eq!(pending.make_room(2, begin + LOGIN_BUDGET), Ok(()));
        assert!(is_evicted(&second).await && !is_evicted(&first).await && !is_evicted(&third).await);
        drop((second, third));
        assert!(pending.queue.borrow().is_empty());
    }
}
