//! Member leases: which replicas of a controller live.

use crate::kubernetes::call::ApiError;
use crate::runtime::Runtime;
use std::{collections::BTreeSet, sync::Arc};

/// This replica's own member lease, renewed in the background, deleted at shutdown after the work has ended.
#[derive(Clone, Debug)]
pub struct Membership {
    name: Arc<str>,
    alive: tokio::sync::watch::Receiver<Option<std::time::Instant>>,
}

impl Membership {
    /// Starts to renew the lease `<program>-<identity>`.
    pub fn start(runtime: &Runtime) -> Self {
        todo!()
    }

    /// The replica's name: what goes into a claim's `worker`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether others still see this replica as alive. When not, its claims may have been freed: stop and start again.
    pub fn is_alive_now(&self) -> bool {
        self.alive
            .borrow()
            .is_some_and(|until| std::time::Instant::now() < until)
    }
}

/// All replicas of this controller, as the planner sees them.
pub struct Members {
    runtime: Runtime,
}

impl Members {
    /// The replicas of the running program.
    pub fn new(runtime: &Runtime) -> Self {
        todo!()
    }

    /// Names of the replicas that live: their lease has changed within its duration on our own clock. One API read. A replica
    /// that is seen for the first time counts as alive; one that died long ago has its lease deleted.
    pub async fn live(&self) -> Result<BTreeSet<String>, ApiError> {
        todo!()
    }
}
