//! Carries out what changes a running cluster: pods that are replaced, and slots that move. It holds the operation Lease meanwhile, so that
//! a backup or a restore which needs slots and pods to stay comes before or after.

use crate::{
    context::Context,
    decision::Decision,
    errors::ReconcileError,
    hand_overs::AFTER_FAILURE,
    observe::NODE_TIMEOUT,
    pods::replace::{ReplacePod, kept_by_back_off},
    redis::{
        execute::{Done, execute},
        member::Member,
        plan::{Plan, Step},
        reshard::{EngineChoice, NodeEndpoints, ReshardLimits},
    },
    replace::replace,
    resharding::ReshardOrder,
    rollout::RolloutStep,
    validate::{Shape, ValidatedCluster},
};
use common::{
    cluster::kept_connections::ClusterConnections,
    kubernetes::{call::ApiError, leases::Holder},
};
use crds::{MigrationEngine, MigrationPolicy, RedisCluster};
use futures::future::BoxFuture;
use k8s_openapi::jiff::Timestamp;
use std::{num::NonZeroU64, time::Duration};

/// What was done.
#[derive(Debug, Default)]
pub struct Changed {
    /// Hand-overs.
    pub done: Vec<Done>,
    /// Pods that were deleted, so that new ones are created.
    pub replaced: Vec<ReplacePod>,
    /// Who needs the pods to stay as they are, so that a rollout waits.
    pub holder: Option<String>,
}

/// A cluster, and what is decided about it.
pub struct Change<'a> {
    /// The RedisCluster: holder of the operation Lease.
    pub object: &'a RedisCluster,
    /// What repairing the nodes needs.
    pub shape: &'a Shape,
    /// What is wanted besides; none where the spec is wrong.
    pub cluster: Option<&'a ValidatedCluster>,
    /// What is to be done.
    pub decision: &'a Decision,
    /// Asks the API server and every node once more, and decides again.
    pub look_again: &'a (dyn Fn() -> BoxFuture<'a, Result<Decision, ApiError>> + Sync),
}

impl Change<'_> {
    fn place(&self) -> (&str, &str) {
        (&self.shape.namespace, &self.shape.name)
    }

    /// Replaces what cannot run, takes the next step of a rollout, and starts or stops moves of slots.
    pub async fn carry_out(&self, context: &Context) -> Result<Changed, ReconcileError> {
        self.move_slots(context)?;
        let mut changed = Changed::default();
        let rollout = &self.decision.rollout;
        let back_off = kept_by_back_off(
            &self.decision.observed.pods,
            &rollout.outdated,
            Timestamp::now(),
        );
        // One of those at a time; a pod that cannot run at all costs nothing.
        // What a new pod would be like is not known while the spec is wrong.
        let back_off = back_off.first().filter(|_| self.cluster.is_some());
        for pod in rollout.broken.iter().chain(back_off) {
            self.replace(context, pod, &mut changed).await?;
        }
        match &rollout.next {
            // A StatefulSet that is refused may stay so for long: backups are not to wait for it.
            RolloutStep::Unwritten { .. } => self.release(context).await?,
            RolloutStep::None | RolloutStep::Refused { .. } => {
                if !rollout.is_under_way() {
                    self.release(context).await?;
                }
            }
            // One disruption at a time: a primary that changes ends the move of its slots.
            RolloutStep::HandOver(_) | RolloutStep::Replace(_)
                if context.resharding.is_moving(self.place()) => {}
            RolloutStep::HandOver(step) => {
                let may_try = context.hand_overs.may_try(self.place(), Timestamp::now());
                if may_try && self.holds(context, &mut changed).await? {
                    self.hand_over(context, step, &mut changed).await;
                }
            }
            RolloutStep::Replace(pods) => {
                if self.holds(context, &mut changed).await? {
                    for pod in self.still_due(pods).await? {
                        self.replace(context, pod, &mut changed).await?;
                    }
                }
            }
        }
        Ok(changed)
    }

    /// Ends the rollout's hold on the pods. Slots that have begun to move hold the same Lease, and their task releases it.
    async fn release(&self, context: &Context) -> Result<(), ReconcileError> {
        let (namespace, name) = self.place();
        if context.resharding.is_moving((namespace, name)) {
            context.held.forget(namespace, name);
            return Ok(());
        }
        let holder = Holder::of(self.object);
        Ok(context.held.release((namespace, name), &holder).await?)
    }

    async fn replace(
        &self,
        context: &Context,
        pod: &ReplacePod,
        changed: &mut Changed,
    ) -> Result<(), ReconcileError> {
        context.leadership.ensure()?;
        if replace(context, &self.shape.namespace, pod).await? {
            changed.replaced.push(pod.clone());
        }
        Ok(())
    }

    /// What a pod has in memory is gone with it, and its primary may have been lost since the look: then it has the only copy.
    async fn still_due<'p>(
        &self,
        pods: &'p [ReplacePod],
    ) -> Result<Vec<&'p ReplacePod>, ReconcileError> {
        let members = &self.decision.observed.members;
        let has_volume = |pod: &ReplacePod| {
            let mut members = members.iter().map(|member| &member.expected);
            members.any(|one| one.pod == pod.pod && one.has_volume)
        };
        if pods.iter().all(has_volume) {
            return Ok(pods.iter().collect());
        }
        let again = (self.look_again)().await?;
        let is_due = |pod: &&ReplacePod| !again.observed.passed_over && again.replaces(pod);
        Ok(pods.iter().filter(is_due).collect())
    }

    async fn hand_over(&self, context: &Context, step: &Step, changed: &mut Changed) {
        let plan = Plan {
            steps: vec![step.clone()],
            blockers: Vec::new(),
        };
        let connections = context.connections.of(self.place());
        let members = &self.decision.observed.members;
        let done = execute(&plan, members, &connections, NODE_TIMEOUT).await;
        if done.iter().any(|one| one.result.is_err()) {
            let until = Timestamp::now() + AFTER_FAILURE;
            context.hand_overs.postpone(self.place(), until);
        }
        changed.done.extend(done);
    }

    /// Takes the operation Lease or renews it.
    async fn holds(
        &self,
        context: &Context,
        changed: &mut Changed,
    ) -> Result<bool, ReconcileError> {
        context.leadership.ensure()?;
        let holder = Holder::of(self.object);
        let other = context.held.take(self.place(), &holder).await?;
        changed.holder = other.map(|other| other.to_string());
        Ok(changed.holder.is_none())
    }

    /// Starts to move slots where only that is left to do, and stops it where the user says so.
    fn move_slots(&self, context: &Context) -> Result<(), ReconcileError> {
        let decision = self.decision;
        let migration = self.cluster.map(|cluster| &cluster.migration);
        let Some(migration) = migration.filter(|migration| !migration.paused) else {
            context.resharding.cancel(self.place());
            return Ok(());
        };
        let goal = decision.balance.goal();
        context.resharding.keep_to(self.place(), &goal);
        if !decision.is_ready_to_move() {
            return Ok(());
        }
        let order = ReshardOrder {
            holder: Holder::of(self.object),
            nodes: primaries(
                &decision.observed.members,
                &context.connections.of(self.place()),
            ),
            goal,
            limits: limits(migration, self.shape.node_timeout),
        };
        context.leadership.ensure()?;
        if let Err(why) = context.resharding.start(self.place(), order) {
            tracing::debug!(%why, "no move of slots was started");
        }
        Ok(())
    }
}

/// How every primary is reached; its id is proven when it is connected to.
fn primaries(members: &[Member], connections: &ClusterConnections) -> NodeEndpoints {
    let primary = |member: &Member| {
        let report = member.report().filter(|report| report.own().is_primary())?;
        let address = member.expected.address?;
        let endpoint = connections.endpoint(address.client(), NODE_TIMEOUT);
        Some((report.id(), endpoint))
    };
    members.iter().filter_map(primary).collect()
}

fn limits(migration: &MigrationPolicy, node_timeout: Duration) -> ReshardLimits {
    let rate = migration.max_bytes_per_second;
    let usual = ReshardLimits::default();
    ReshardLimits {
        call_timeout: usual.call_timeout.min(node_timeout / 4),
        engine: match migration.engine {
            MigrationEngine::Auto => EngineChoice::Auto,
            MigrationEngine::Atomic => EngineChoice::Atomic,
            MigrationEngine::Legacy => EngineChoice::Legacy,
        },
        bytes_per_second: rate.and_then(|rate| NonZeroU64::new(u64::try_from(rate).ok()?)),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A source answers no one while it waits for a target that hangs.
    #[test]
    fn a_target_that_hangs_is_not_waited_for_long() {
        let of = |milliseconds| {
            let node_timeout = Duration::from_millis(milliseconds);
            limits(&MigrationPolicy::default(), node_timeout).call_timeout
        };
        assert_eq!(of(500), Duration::from_millis(125));
        assert_eq!(of(5000), Duration::from_millis(1250));
        assert_eq!(of(60_000), Duration::from_secs(2));
    }
}
