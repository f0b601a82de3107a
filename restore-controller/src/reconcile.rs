//! One pass over one RedisRestore: every replica looks after its own units, the leader plans.

use crate::{
    planner::{Planner, PlannerError},
    worker::Worker,
};
use common::kubernetes::{controller::Reconcile, leases::Leadership, outcome::Outcome};
use crds::RedisRestore;
use std::sync::Arc;

/// Both sides of one replica.
pub struct Restores {
    /// The replaying side.
    pub worker: Arc<Worker>,
    /// The planning side.
    pub planner: Planner,
    /// Whether this replica plans.
    pub leadership: Leadership,
}

impl Reconcile<RedisRestore> for Restores {
    type Error = PlannerError;

    async fn reconcile(&self, restore: Arc<RedisRestore>) -> Result<Outcome, PlannerError> {
        self.worker.consider(&restore).await?;
        if !self.leadership.is_leader_now() {
            return Ok(Outcome::finished());
        }
        self.planner.pass(&restore).await
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.worker.gone(namespace, name);
        self.planner.gone(namespace, name);
    }
}
