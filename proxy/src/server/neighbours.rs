//! The session threads, as the sessions of one shard see them: orders to all threads, their own included.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use manatee_shared::ids::ShardName;

use crate::admin::console::Console;
use crate::crew::{Action, Target};
use crate::pool::control::Scope;
use crate::room::{Scarce, Threads};

/// All session threads. They are known to the console once all are started.
pub(super) struct ThreadsOf {
    pub(super) console: Arc<Console>,
    pub(super) shard: ShardName,
}

impl Threads for ThreadsOf {
    fn release(&self, database: Box<str>) -> BoxFuture<'static, ()> {
        let target = Target { shard: Some(self.shard.clone()), scope: Scope::Database(database.into()) };
        let crew = self.console.crew();
        Box::pin(async move {
            crew.order(Action::Release(target)).await;
        })
    }

    fn make_room(&self, scarce: Scarce) -> BoxFuture<'static, usize> {
        let (crew, shard) = (self.console.crew(), self.shard.clone());
        Box::pin(async move { crew.order(Action::MakeRoom(shard, scarce)).await })
    }
}
