//! How many pods the StatefulSet of each shard has. Pure.
//!
//! A set grows as soon as the spec says so. It shrinks only by pods that nothing depends on: every slot is served by a living node that
//! stays, and the pod's own node says that it has neither slots nor keys of its own, nor expects any. A set without pods is deleted then.
//!
//! While the cluster hibernates no set has pods, and none is deleted.

use crate::{
    redis::{
        member::{Answer, ExpectedNode, Member, Report},
        survey::Survey,
    },
    validate::Shape,
};
use common::cluster::{
    slots::{SLOT_COUNT, SlotSet},
    topology::{ClusterNode, NodeId, OpenSlot, OpenSlotKind},
};
use crds::node_of_pod;
use std::collections::BTreeMap;

/// A StatefulSet that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExistingSet {
    /// Index of the shard.
    pub shard: i32,
    /// Pods that it is to have (`spec.replicas`).
    pub pods: i32,
}

/// A StatefulSet as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetSize {
    /// Index of the shard.
    pub shard: i32,
    /// Pods.
    pub pods: i32,
    /// Whether the volume of a pod that leaves is kept. One of a pod that has left for good holds nothing that anyone needs, and a pod of
    /// the same name would come back with an identity that the cluster has forgotten.
    pub keeps_volumes: bool,
}

/// All StatefulSets of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Those that are to exist.
    pub sizes: Vec<SetSize>,
    /// Shards whose set has no pods any more and is not wanted.
    pub removed: Vec<i32>,
}

impl Sets {
    /// The same with the pods of kept volumes, each given by shard and ordinal: see [`lacks_kept_volumes`].
    #[must_use]
    pub fn with_volumes(mut self, volumes: &[(i32, i32)]) -> Self {
        for (shard, ordinal) in volumes {
            let pods = ordinal.saturating_add(1);
            match self.sizes.iter_mut().find(|size| size.shard == *shard) {
                Some(size) => size.pods = size.pods.max(pods),
                None => self.sizes.push(SetSize {
                    shard: *shard,
                    pods,
                    keeps_volumes: true,
                }),
            }
        }
        self.sizes.sort_unstable_by_key(|size| size.shard);
        let sizes = &self.sizes;
        self.removed
            .retain(|shard| sizes.iter().all(|size| size.shard != *shard));
        self
    }
}

/// Whether nodes with slots are missing that were never seen in a pod: after the cluster was created again with fewer shards than its kept
/// volumes are of. What proves that they belong to it are the tables of the nodes that are here. Their pods are wanted like any that leaves,
/// until others serve their slots and they say themselves that they hold nothing.
pub fn lacks_kept_volumes(survey: &Survey<'_>) -> bool {
    let mut missing = survey.missing.values();
    survey.wanted.persistent
        && missing.any(|node| !node.recorded && node.unreachable_by_all && !node.slots.is_empty())
}

/// Decides the sizes. `moving`: slots move, perhaps to a node that had nothing when it was asked; no pod leaves meanwhile.
pub fn sets(shape: &Shape, existing: &[ExistingSet], survey: &Survey<'_>, moving: bool) -> Sets {
    let existing: BTreeMap<i32, i32> = existing.iter().map(|set| (set.shard, set.pods)).collect();
    let last = existing.keys().next_back().map_or(0, |last| last + 1);
    if shape.hibernate {
        return stopped(shape.shards.max(last));
    }
    let covered = is_covered(survey) && !moving;
    let mut sets = Sets::default();
    for shard in 0..shape.shards.max(last) {
        let wanted = if shard < shape.shards {
            1 + shape.replicas
        } else {
            0
        };
        let certain = needed(shape, survey, shard, answers).max(wanted);
        let needed = needed(shape, survey, shard, |_| true).max(wanted);
        let running = members_from(survey.members, shard, 0)
            .filter_map(last_pod)
            .max();
        let pods = match existing.get(&shard) {
            Some(pods) if !covered => certain.max(*pods),
            // A pod that ends because of an earlier decision answers no more. A set that grew for it would start it again.
            Some(pods) => certain.max(needed.min(*pods)),
            // Pods run on without their set: one that was deleted to be created again, or by mistake.
            None if !covered => needed.max(running.unwrap_or(0)),
            None => needed,
        };
        let leaving = covered && members_from(survey.members, shard, pods).next().is_some();
        // A set that has hibernated may be the one of slots that no node has spoken of yet.
        let is_needless = covered || !existing.contains_key(&shard);
        if pods == 0 && !leaving && is_needless {
            sets.removed
                .extend(existing.contains_key(&shard).then_some(shard));
            continue;
        }
        sets.sizes.push(SetSize {
            shard,
            pods,
            keeps_volumes: !leaving,
        });
    }
    sets
}

/// No pod at all.
fn stopped(shards: i32) -> Sets {
    let size = |shard| SetSize {
        shard,
        pods: 0,
        keeps_volumes: true,
    };
    Sets {
        sizes: (0..shards).map(size).collect(),
        removed: Vec::new(),
    }
}

/// How many pods a set needs to have this one.
fn last_pod(member: &Member) -> Option<i32> {
    let ordinal = i32::try_from(member.expected.ordinal).ok()?;
    ordinal.checked_add(1)
}

/// The fewest pods that the shard's set may have: above them are only pods that may leave, or whose answers do not count. The pod of a
/// missing node with slots, which another client has deleted together with its set, is needed too.
fn needed(shape: &Shape, survey: &Survey<'_>, shard: i32, counts: fn(&Answer) -> bool) -> i32 {
    let existing = members_from(survey.members, shard, 0)
        .filter(|member| counts(&member.answer) && !may_leave(survey, member));
    let existing = existing.filter_map(last_pod);
    let missing = survey.missing.iter().filter_map(|(id, node)| {
        let pod = survey.wanted.known.get(id)?;
        let (of_shard, ordinal) = node_of_pod(&shape.name, pod)?;
        (of_shard == shard && !node.slots.is_empty()).then_some(ordinal + 1)
    });
    existing.chain(missing).max().unwrap_or(0)
}

fn answers(answer: &Answer) -> bool {
    !matches!(answer, Answer::Unresponsive(_) | Answer::Absent(_))
}

/// The members of a shard from this ordinal on whose pods exist.
pub fn members_from(members: &[Member], shard: i32, first: i32) -> impl Iterator<Item = &Member> {
    let (shard, first) = (usize::try_from(shard), usize::try_from(first).unwrap_or(0));
    members.iter().filter(move |member| {
        let expected = &member.expected;
        Ok(expected.shard) == shard && expected.ordinal >= first && expected.exists
    })
}

/// Whether every slot belongs to a living node whose pod stays.
fn is_covered(survey: &Survey<'_>) -> bool {
    let staying = survey.live.iter().filter(|one| one.member.expected.wanted);
    let slots = staying
        .filter_map(|one| survey.owned_by(one.report.id()))
        .fold(SlotSet::new(), |all, slots| all.union(slots));
    slots.len() == usize::from(SLOT_COUNT)
}

/// Whether nothing is lost with the pod, once every slot is served by others.
fn may_leave(survey: &Survey<'_>, member: &Member) -> bool {
    if member.expected.wanted {
        return false;
    }
    match &member.answer {
        Answer::Report(report) => {
            let own = report.own();
            // Until its primary has written a file of its own, the copy that leaves may be the only whole one on a disk.
            let primary = own.primary.and_then(|id| survey.by_id(id));
            let is_copy = primary
                .is_some_and(|one| member.expected.terminating || !one.member.rewrites_its_file());
            let is_blank = report.keys == 0 && !report.imports && !expects_slots(survey, report);
            own.slots.is_empty() && (is_copy || is_blank)
        }
        // No server runs in it, and what was in memory is gone.
        Answer::Absent(_) if !member.expected.has_volume => true,
        // No server was ever started in it.
        Answer::Unresponsive(_) if is_blank_for_certain(&member.expected) => true,
        // A primary without slots may have keys of slots that were on their way to it, and only it can say that it has none.
        Answer::Absent(_) | Answer::Unresponsive(_) => {
            let known = survey.wanted.known.iter();
            let mut of_pod = known.filter(|(_, pod)| **pod == member.expected.pod);
            let are_copies = of_pod.all(|(id, _)| is_unreachable_copy(survey, *id));
            are_copies && !is_given_slots(survey, member.expected.shard)
        }
        Answer::Loading | Answer::Busy | Answer::Foreign(_) => false,
    }
}

/// Whether the pod has no volume, and no server was ever started in it.
fn is_blank_for_certain(expected: &ExpectedNode) -> bool {
    !expected.has_volume && expected.last_started.is_none()
}

/// Whether slots are on their way to a node: clients are sent to it for the keys that its source does not have.
fn expects_slots(survey: &Survey<'_>, report: &Report) -> bool {
    let mut given = given(survey);
    given.any(|open| open.peer == report.id()) || !report.open_slots().is_empty()
}

/// The slots that primaries are giving away.
fn given<'a>(survey: &'a Survey<'_>) -> impl Iterator<Item = &'a OpenSlot> {
    let live = survey.live.iter();
    let open = live.flat_map(|one| one.report.open_slots());
    open.filter(|open| open.kind == OpenSlotKind::Migrating)
}

/// Whether no node reaches it, and all that list it know it as the replica of a primary that lives, or of one that has become a replica of that:
/// it alone could tell them that its primary is another one by now.
fn is_unreachable_copy(survey: &Survey<'_>, id: NodeId) -> bool {
    let missing = survey.missing.get(&id);
    let live = survey.live.iter();
    let listed: Vec<_> = live.filter_map(|one| one.report.view.get(id)).collect();
    let is_copy = |node: &&ClusterNode| {
        let listed = node.primary.and_then(|primary| survey.by_id(primary));
        let above = listed.and_then(|one| survey.by_id(one.report.own().primary?));
        let mut above = listed.into_iter().chain(above);
        above.any(|one| one.report.own().is_primary() && !one.member.rewrites_its_file())
    };
    missing.is_some_and(|node| node.unreachable_by_all)
        && !listed.is_empty()
        && listed.iter().all(is_copy)
}

/// Whether a living node is giving slots to a node of this shard that does not answer. It may have keys of them already, and a copy of it,
/// which is in no table, may have the only ones.
fn is_given_slots(survey: &Survey<'_>, shard: usize) -> bool {
    given(survey).any(|slot| {
        let home = survey.missing.get(&slot.peer);
        let home = home.and_then(|missing| survey.home_shard(missing));
        survey.by_id(slot.peer).is_none() && home.is_none_or(|home| home == shard)
    })
}

#[cfg(test)]
mod tests;
