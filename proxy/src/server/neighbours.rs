//! The session threads, as the sessions of one shard see them: orders to all threads, their own included.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use manatee_shared::ids::ShardName;

use crate::admin::console::Console;
use crate::pool::control::Scope;
use crate::room::{Scarce, Threads};
use crate::session_threads::{SessionTarget, ThreadAction};

/// All session threads. They are known to the console once all are started.
pub(super) struct ThreadsOf {
    pub(super) console: Arc<Console>,
    pub(super) shard: ShardName,
}

impl Threads for ThreadsOf {
    fn release(&self, database: Box<str>) -> BoxFuture<'static, ()> {
        let target = SessionTarget { shard: Some(self.shard.clone()), scope: Scope::Database(database.into()) };
        let threads = self.console.threads();
        Box::pin(async move {
            threads.order(ThreadAction::Release(target)).await;
        })
    }

    fn make_room(&self, scarce: Scarce) -> BoxFuture<'static, usize> {
        let (threads, shard) = (self.console.threads(), self.shard.clone());
        Box::pin(async move { threads.order(ThreadAction::MakeRoom(shard, scarce)).await })
    }
}
