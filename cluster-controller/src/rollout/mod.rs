//! Brings every pod to the wanted template, shard by shard: its replicas first, then its primary once a replica has taken over. Pure.
//!
//! It is recomputed from what is seen, so it does not matter where an earlier one was interrupted, and a spec that is reverted is just
//! another template. A step is taken only while the whole cluster is healthy: the first new pod that does not come up ends it.

use crate::{
    observe::Observed,
    pods::{
        self, Pods,
        replace::{ReplacePod, ReplaceReason},
    },
    redis::{
        assess::Assessment,
        election::would_win,
        member::{Answer, Member},
        plan::{Action, HandOverReason, Plan, Step},
        successor::successor,
        survey::{Live, Survey},
    },
    settings::stamp,
    validate::ValidatedCluster,
};
use crds::{UpdateStrategy, node_of_pod};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use std::{collections::BTreeSet, sync::Arc};

/// What is left to do, and what of it now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollout {
    /// Pods of an older template, by shard and ordinal.
    pub outdated: Vec<String>,
    /// Whether the controller replaces them by itself.
    pub is_automatic: bool,
    /// Pods that cannot run with the template that they have: nothing is lost by replacing them, so it is done whatever else is wrong.
    pub broken: Vec<ReplacePod>,
    /// What is done next where the cluster is healthy. Empty: it waits.
    pub next: RolloutStep,
}

/// What a rollout does next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RolloutStep {
    /// Nothing is left to do, or the cluster is not healthy.
    #[default]
    None,
    /// Pods are replaced, of one shard each.
    Replace(Vec<ReplacePod>),
    /// A replica takes over from the primary that is to be replaced.
    HandOver(Step),
    /// Nothing can be done without losing data.
    Refused {
        /// The primary without a copy.
        pod: String,
    },
}

impl Rollout {
    /// Whether pods are still to be replaced by the controller.
    pub fn is_under_way(&self) -> bool {
        self.is_automatic
            && !self.outdated.is_empty()
            && !matches!(self.next, RolloutStep::Refused { .. })
    }
}

/// Whether the controller is to replace a pod: primaries then stay where the rollout puts them.
pub fn is_due(cluster: Option<&ValidatedCluster>, pods: &Pods) -> bool {
    let is_outdated = |cluster: &ValidatedCluster| {
        let mut nodes = pods.iter().filter_map(|(name, pod)| {
            let (shard, _) = node_of_pod(&cluster.shape.name, name)?;
            Some((usize::try_from(shard).ok()?, pod))
        });
        nodes.any(|(shard, pod)| stamp::is_outdated(cluster, shard, pod))
    };
    cluster
        .filter(|cluster| cluster.update.strategy == UpdateStrategy::RollingUpdate)
        .is_some_and(is_outdated)
}

/// Decides what is next. `restart`: pods whose settings only a restart brings to what is wanted.
pub fn rollout(
    cluster: &ValidatedCluster,
    observed: &Observed,
    survey: &Survey<'_>,
    (assessment, plan): (&Assessment, &Plan),
    restart: &BTreeSet<String>,
    now: Timestamp,
) -> Rollout {
    let is_older = |member: &Member| {
        is_outdated(cluster, observed, member) || restart.contains(&member.expected.pod)
    };
    let outdated: Vec<&Member> = survey
        .members
        .iter()
        .filter(|member| member.expected.wanted && is_older(member))
        .collect();
    let is_automatic = cluster.update.strategy == UpdateStrategy::RollingUpdate;
    let mut broken = Vec::new();
    if is_automatic {
        let cannot_run = survey.members.iter().filter(|member| {
            let other =
                is_outdated(cluster, observed, member) || may_not_adopt(cluster, observed, member);
            member.expected.wanted && other && cannot_run(observed, member, now)
        });
        broken.extend(cannot_run.filter_map(|member| replacement(observed, member)));
    }
    let idle = assessment.is_healthy() && plan.steps.is_empty() && are_settled(observed, survey);
    let next = if is_automatic && idle && broken.is_empty() {
        next(cluster, observed, survey, &outdated)
    } else {
        RolloutStep::None
    };
    Rollout {
        outdated: outdated
            .iter()
            .map(|member| member.expected.pod.clone())
            .collect(),
        is_automatic,
        broken,
        next,
    }
}

fn pod_of<'a>(observed: &'a Observed, member: &Member) -> Option<&'a Arc<Pod>> {
    observed.pods.get(&member.expected.pod)
}

/// Whether its pod was created from another template than the next one would be.
fn is_outdated(cluster: &ValidatedCluster, observed: &Observed, member: &Member) -> bool {
    pod_of(observed, member)
        .is_some_and(|pod| stamp::is_outdated(cluster, member.expected.shard, pod))
}

/// Whether the volumes that it may take over are not those that it is to take over by now: where its server runs, that does not matter.
fn may_not_adopt(cluster: &ValidatedCluster, observed: &Observed, member: &Member) -> bool {
    let storage = cluster.storage.as_ref();
    let wanted = storage.and_then(|storage| storage.adopts.as_deref());
    wanted.is_some() && pod_of(observed, member).is_some_and(|pod| pods::adopts(pod) != wanted)
}

/// Whether no server runs in the pod and none will with the template that it has.
fn cannot_run(observed: &Observed, member: &Member, now: Timestamp) -> bool {
    let silent = matches!(member.answer, Answer::Absent(_) | Answer::Unresponsive(_));
    silent
        && pod_of(observed, member).is_some_and(|pod| {
            !pods::is_terminating(pod)
                && pods::start::cannot_start(pod, pods::start::STARTED_BY, now)
        })
}

fn replacement(observed: &Observed, member: &Member) -> Option<ReplacePod> {
    Some(ReplacePod {
        pod: member.expected.pod.clone(),
        uid: pod_of(observed, member)?.metadata.uid.clone()?,
        reason: ReplaceReason::Outdated,
    })
}

/// Whether every pod that is wanted is there, ready by Kubernetes' own count, and stays.
fn are_settled(observed: &Observed, survey: &Survey<'_>) -> bool {
    survey
        .members
        .iter()
        .all(|member| pod_of(observed, member).is_some_and(|pod| pods::is_ready(pod)))
}

fn next(
    cluster: &ValidatedCluster,
    observed: &Observed,
    survey: &Survey<'_>,
    outdated: &[&Member],
) -> RolloutStep {
    let mut shards: Vec<usize> = outdated
        .iter()
        .map(|member| member.expected.shard)
        .collect();
    shards.dedup();
    let at_once = usize::try_from(cluster.update.max_unavailable_shards).unwrap_or(1);
    let mut replaced = Vec::new();
    for shard in shards.into_iter().take(at_once) {
        let of_shard = outdated
            .iter()
            .copied()
            .filter(|member| member.expected.shard == shard);
        match next_in_shard(cluster, survey, shard, &of_shard.collect::<Vec<_>>()) {
            ShardStep::Replace(member) => replaced.extend(replacement(observed, member)),
            // One at a time, after the replicas of the other shards.
            step @ (ShardStep::HandOver(..) | ShardStep::Refused(_)) if replaced.is_empty() => {
                return step.into();
            }
            ShardStep::HandOver(..) | ShardStep::Refused(_) | ShardStep::None => {}
        }
    }
    if replaced.is_empty() {
        RolloutStep::None
    } else {
        RolloutStep::Replace(replaced)
    }
}

enum ShardStep<'a> {
    None,
    Replace(&'a Member),
    HandOver(Live<'a>, Live<'a>),
    Refused(&'a Member),
}

impl From<ShardStep<'_>> for RolloutStep {
    fn from(step: ShardStep<'_>) -> Self {
        match step {
            ShardStep::HandOver(from, to) => Self::HandOver(Step {
                action: Action::HandOver {
                    to: to.index,
                    from: from.index,
                    reason: HandOverReason::Replace,
                },
                reason: format!(
                    "{} is to be replaced by a pod of the wanted template: {} takes over first",
                    from.pod(),
                    to.pod()
                ),
            }),
            ShardStep::Refused(member) => Self::Refused {
                pod: member.expected.pod.clone(),
            },
            ShardStep::Replace(_) | ShardStep::None => Self::None,
        }
    }
}

/// The cluster is healthy: each node is the primary of its shard or a linked replica of it.
fn next_in_shard<'a>(
    cluster: &ValidatedCluster,
    survey: &Survey<'a>,
    shard: usize,
    outdated: &[&'a Member],
) -> ShardStep<'a> {
    let Some(primary) = survey.primary_of(shard) else {
        return ShardStep::None;
    };
    let pod = primary.pod();
    let replica = outdated
        .iter()
        .rev()
        .find(|member| member.expected.pod != pod);
    if let Some(replica) = replica {
        return ShardStep::Replace(replica);
    }
    // An election for no slots does not take place.
    if primary.report.is_blank() {
        return ShardStep::Replace(primary.member);
    }
    match successor(survey, shard, primary, |_| true) {
        Some(best) if would_win(survey, best, primary) => ShardStep::HandOver(primary, best),
        Some(_) => ShardStep::None,
        None if cluster.shape.persistent => ShardStep::Replace(primary.member),
        None => ShardStep::Refused(primary.member),
    }
}

#[cfg(test)]
mod tests;
