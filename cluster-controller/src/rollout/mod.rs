//! Brings every pod to the wanted template, shard by shard: its replicas first, then its primary once a replica has taken over. Pure.
//!
//! It is recomputed from what is seen, so it does not matter where an earlier one was interrupted, and a spec that is reverted is just
//! another template. A step is taken only while the whole cluster is healthy: the first new pod that does not come up ends it.

mod written;

pub use written::written;

use crate::{
    observe::Observed,
    pods::{
        self, Pods,
        replace::{ReplacePod, ReplaceReason},
    },
    redis::{
        assess::{Assessment, is_linked, is_older_than_primary},
        election::would_win,
        member::{Answer, Member},
        plan::{Action, HandOverReason, Plan, Step},
        successor::successor,
        survey::{Live, MissingNode, Survey},
    },
    serving,
    settings::{stamp, template::NamedTemplate},
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
    /// The pods that are left would come back as they are.
    Unwritten {
        /// A shard whose StatefulSet does not name what is wanted: it is about to be written, or the API server refuses it.
        shard: usize,
    },
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

/// What a rollout follows from.
pub struct RolloutInputs<'a, 's> {
    /// What is wanted.
    pub cluster: &'a ValidatedCluster,
    /// Pods and nodes.
    pub observed: &'a Observed,
    /// The same, from above.
    pub survey: &'a Survey<'s>,
    /// How the cluster is.
    pub assessment: &'a Assessment,
    /// What repairs it.
    pub plan: &'a Plan,
    /// Pods whose settings only a restart brings to what is wanted.
    pub restart: &'a BTreeSet<String>,
    /// Shards whose StatefulSet would make a pod as it is wanted. Any other one would make the pod again that was replaced.
    pub written: &'a BTreeSet<i32>,
    /// Now: pods that have not started for so long will not.
    pub now: Timestamp,
}

impl<'s> RolloutInputs<'_, 's> {
    /// Decides what is next.
    pub fn decide(&self) -> Rollout {
        let survey = self.survey;
        let wanted = survey.members.iter().filter(|one| one.expected.wanted);
        let outdated: Vec<&'s Member> = wanted.filter(|one| self.is_older(one)).collect();
        let is_automatic = self.cluster.update.strategy == UpdateStrategy::RollingUpdate;
        let broken = if is_automatic {
            self.broken()
        } else {
            Vec::new()
        };
        let idle = self.assessment.is_healthy() && self.plan.steps.is_empty() && self.are_settled();
        let next = if is_automatic && idle && broken.is_empty() {
            self.next(&outdated)
        } else {
            RolloutStep::None
        };
        let name = |member: &&Member| member.expected.pod.clone();
        Rollout {
            outdated: outdated.iter().map(name).collect(),
            is_automatic,
            broken,
            next,
        }
    }

    fn pod_of(&self, member: &Member) -> Option<&Arc<Pod>> {
        self.observed.pods.get(&member.expected.pod)
    }

    /// Whether its pod was created from another template than is wanted, or only another pod has the wanted settings.
    fn is_older(&self, member: &Member) -> bool {
        let shard = member.expected.shard;
        let pod = self.pod_of(member);
        pod.is_some_and(|pod| stamp::is_outdated(self.cluster, shard, pod))
            || self.restart.contains(&member.expected.pod)
    }

    /// Whether the volumes that it may take over are not those that it is to take over by now: where its server runs, that does not matter.
    fn may_not_adopt(&self, member: &Member) -> bool {
        let storage = self.cluster.storage.as_ref();
        let wanted = storage.and_then(|storage| storage.adopts.as_deref());
        let shard = i32::try_from(member.expected.shard).unwrap_or(i32::MAX);
        let held = self.cluster.held.get(&shard);
        let next = held.map_or(wanted, NamedTemplate::adopts);
        let pod = self.pod_of(member).and_then(|pod| pod.spec.as_ref());
        next.is_some() && pod.is_some_and(|pod| pods::adopts(pod) != next)
    }

    /// Whether a new pod would be as it is wanted.
    fn is_written(&self, member: &Member) -> bool {
        let shard = i32::try_from(member.expected.shard);
        shard.is_ok_and(|shard| self.written.contains(&shard))
    }

    /// Pods that can be replaced without loss, and that do not recover with the template that they have; those that leave included: they have
    /// to start once to say what is on their volumes.
    fn broken(&self) -> Vec<ReplacePod> {
        let members = self.survey.members.iter();
        let staying = members.filter(|one| !one.expected.terminating && self.is_written(one));
        let broken = staying.filter(|one| {
            let has_another = self.is_older(one);
            (has_another || self.may_not_adopt(one)) && self.cannot_run(one)
                || has_another && (self.has_never_served(one) || self.cannot_copy(one))
        });
        broken
            .filter_map(|member| self.replacement(member))
            .collect()
    }

    /// Whether no server runs in the pod and none will with the template that it has.
    fn cannot_run(&self, member: &Member) -> bool {
        is_silent(member)
            && self.pod_of(member).is_some_and(|pod| {
                pods::start::cannot_start(pod, pods::start::STARTED_BY, self.now)
            })
    }

    /// Whether the pod has not become ready since it was created, and holds nothing that is nowhere else: another pod serves the shard, or
    /// it has a volume, and its server does not answer.
    fn has_never_served(&self, member: &Member) -> bool {
        let Some(pod) = self.pod_of(member) else {
            return false;
        };
        let primary = self.survey.primary_of(member.expected.shard);
        let is_served = primary.is_some_and(|primary| primary.pod() != member.expected.pod);
        let report = member.report();
        let owns_nothing = report.is_none_or(|report| {
            let own = report.own();
            own.slots.is_empty() && (own.primary.is_some() || report.keys == 0)
        });
        let waits = self.keeps_its_data(member) && self.is_silent_for_others(member, pod);
        pods::has_never_served(pod)
            && !serving::serves(&member.answer)
            && ((is_served && owns_nothing) || waits)
    }

    /// Whether the replica has lost its copy because its primary's server is newer: the cluster is not healthy again before it is updated.
    fn cannot_copy(&self, member: &Member) -> bool {
        let replica = member
            .report()
            .and_then(|report| self.survey.by_id(report.id()));
        let primary = replica.and_then(|one| self.survey.by_id(one.report.own().primary?));
        // It drops what it has before it fails to load. After a mere loss of the link it still has everything, and may need no copy.
        replica.zip(primary).is_some_and(|(replica, primary)| {
            !is_linked(replica, primary)
                && is_older_than_primary(replica, primary)
                && replica.report.keys == 0
                && primary.report.keys > 0
        })
    }

    /// Whether the pod that takes its place finds its data.
    fn keeps_its_data(&self, member: &Member) -> bool {
        self.cluster.shape.persistent && member.expected.has_volume
    }

    /// Whether a server answers no one: not this process only.
    fn is_silent_for_others(&self, member: &Member, pod: &Pod) -> bool {
        let of_pod = self.survey.missing.values();
        let mut of_pod = of_pod.filter(|one| one.pod.as_ref() == Some(&member.expected.pod));
        let is_lost = !self.survey.live.is_empty() && of_pod.all(MissingNode::is_lost);
        is_silent(member) && (is_lost || !pods::containers_ready(pod))
    }

    fn replacement(&self, member: &Member) -> Option<ReplacePod> {
        Some(ReplacePod {
            pod: member.expected.pod.clone(),
            uid: self.pod_of(member)?.metadata.uid.clone()?,
            reason: ReplaceReason::Outdated,
        })
    }

    /// Whether every pod that is wanted is there, ready by Kubernetes' own count, and stays.
    fn are_settled(&self) -> bool {
        let mut pods = self.survey.members.iter().map(|one| self.pod_of(one));
        pods.all(|pod| pod.is_some_and(|pod| pods::is_ready(pod)))
    }

    fn next(&self, outdated: &[&'s Member]) -> RolloutStep {
        let (written, unwritten): (Vec<&Member>, Vec<&Member>) =
            outdated.iter().partition(|one| self.is_written(one));
        if let (true, Some(first)) = (written.is_empty(), unwritten.first()) {
            let shard = first.expected.shard;
            return RolloutStep::Unwritten { shard };
        }
        let mut shards: Vec<usize> = written.iter().map(|one| one.expected.shard).collect();
        shards.dedup();
        let at_once = usize::try_from(self.cluster.update.max_unavailable_shards).unwrap_or(1);
        let mut replaced = Vec::new();
        let mut spared = spare_voters(self.survey);
        for shard in shards.into_iter().take(at_once) {
            let of_shard = written.iter().copied();
            let of_shard = of_shard.filter(|member| member.expected.shard == shard);
            match self.next_in_shard(shard, &of_shard.collect::<Vec<_>>()) {
                ShardStep::Replace(member) if !owns_slots(member) => {
                    replaced.extend(self.replacement(member));
                }
                ShardStep::Replace(member) => {
                    if spared > 0 || replaced.is_empty() {
                        replaced.extend(self.replacement(member));
                    }
                    spared = spared.saturating_sub(1);
                }
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

    /// The cluster is healthy: each node is the primary of its shard or a linked replica of it.
    fn next_in_shard(&self, shard: usize, outdated: &[&'s Member]) -> ShardStep<'s> {
        let survey = self.survey;
        let Some(primary) = survey.primary_of(shard) else {
            return ShardStep::None;
        };
        let keeps_its_data = self.keeps_its_data(primary.member);
        // Until it has written its file, that of a replica may be the only whole one.
        let must_write = keeps_its_data && primary.member.rewrites_its_file();
        let pod = primary.pod();
        let mut replicas = outdated.iter().rev();
        if let Some(replica) = replicas.find(|member| member.expected.pod != pod) {
            return if must_write {
                ShardStep::None
            } else {
                ShardStep::Replace(replica)
            };
        }
        // An election for no slots does not take place.
        if primary.report.is_blank() {
            return ShardStep::Replace(primary.member);
        }
        match successor(survey, shard, primary, |_| true) {
            Some(best) if would_win(survey, best, primary) => ShardStep::HandOver(primary, best),
            Some(_) => ShardStep::None,
            None if must_write || has_replicas(survey, shard) => ShardStep::None,
            None if keeps_its_data => ShardStep::Replace(primary.member),
            None => ShardStep::Refused(primary.member),
        }
    }
}

/// Whether a living node copies the primary of the shard: it is waited for until it can take over.
fn has_replicas(survey: &Survey<'_>, shard: usize) -> bool {
    survey
        .live_in(shard)
        .any(|one| one.report.own().is_replica())
}

fn is_silent(member: &Member) -> bool {
    matches!(member.answer, Answer::Absent(_) | Answer::Unresponsive(_))
}

fn owns_slots(member: &Member) -> bool {
    let report = member.report();
    report.is_some_and(|report| !report.own().slots.is_empty())
}

/// How many primaries can be away while the others are a majority: without one no server of the cluster serves.
fn spare_voters(survey: &Survey<'_>) -> usize {
    let (_, voters) = survey.quorum();
    voters.saturating_sub(1) / 2
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

#[cfg(test)]
mod tests;
