//! One pass over one RedisBackup: every replica looks after its own units, the leader plans.

use crate::{
    planner::{Planner, PlannerError},
    worker::Worker,
};
use common::kubernetes::{controller::Reconcile, leases::Leadership, outcome::Outcome};
use crds::RedisBackup;
use std::sync::Arc;

/// Both sides of one replica.
pub struct Backups {
    /// The streaming side.
    pub worker: Arc<Worker>,
    /// The planning side.
    pub planner: Planner,
    /// Whether this replica plans.
    pub leadership: Leadership,
}

impl Reconcile<RedisBackup> for Backups {
    type Error = PlannerError;

    async fn reconcile(&self, backup: Arc<RedisBackup>) -> Result<Outcome, PlannerError> {
        self.worker.consider(&backup).await?;
        if !self.leadership.is_leader_now() {
            return Ok(Outcome::finished());
        }
        self.planner.pass(&backup).await
    }

    fn gone(&self, namespace: &str, name: &str) {
        self.worker.gone(namespace, name);
        self.planner.gone(namespace, name);
    }
}
