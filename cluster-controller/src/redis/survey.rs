//! Facts that follow from all the answers together: who owns what, who is gone, who lags behind.

use super::{
    identity::announced_pod,
    member::{Answer, Member, Report, Wanted},
};
use common::cluster::{
    slots::{SLOT_COUNT, Slot, SlotSet},
    topology::{Flag, NodeAddress, NodeId},
};
use k8s_openapi::jiff::Timestamp;
use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

/// Index of a member.
pub type Index = usize;

/// A member that answered.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// Its index.
    pub index: Index,
    /// It.
    pub member: &'a Member,
    /// Its report.
    pub report: &'a Report,
}

impl Live<'_> {
    /// Name of its pod.
    pub fn pod(&self) -> &str {
        &self.member.expected.pod
    }

    /// Its shard.
    pub fn shard(&self) -> usize {
        self.member.expected.shard
    }
}

/// A node that a table lists and that answered at no expected address.
#[derive(Clone, Debug, Default)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub struct MissingNode {
    /// Slots whose newest claim is its own.
    pub slots: SlotSet,
    /// Whether any table still lists slots for it.
    pub listed_with_slots: bool,
    /// Members that have it in their table.
    pub known_by: Vec<Index>,
    /// Members that call themselves its replica.
    pub replicas: Vec<Index>,
    /// Whether every member that has it in its table reports it as failed, without address or without link. If not, it is alive:
    /// what it claims is never overruled.
    pub unreachable_by_all: bool,
    /// The host name that it announces.
    pub hostname: Option<String>,
    /// The expected pod that it was last seen in, while that pod gives no report: it may come back there. Of a node that is not recorded,
    /// the pod whose name it announces.
    pub pod: Option<String>,
    /// The expected node that it was last seen in, whatever answers there now: it and its shard say what may still become of it.
    pub home: Option<Index>,
    /// Whether it is alive for certain: the server in its pod is busy with a script.
    pub busy: bool,
    /// Whether it was ever seen in a pod of the cluster. One that was not is never given up: it is not the cluster's to create again.
    pub recorded: bool,
    /// Whether every member that has it in its table reports it as failing: none has had a sign of it for a node timeout.
    pub failing_by_all: bool,
    /// Its last known address.
    pub address: Option<NodeAddress>,
}

impl MissingNode {
    /// Whether it gives no sign of life: no member reaches it, and its pod does not answer as busy.
    pub fn is_lost(&self) -> bool {
        self.unreachable_by_all && !self.busy
    }

    /// Whether it is gone for certain: it was in a pod of the cluster, no member reaches it, and its pod does not answer as busy.
    pub fn is_gone(&self) -> bool {
        self.recorded && self.is_lost()
    }

    /// Whether it lives at an address that is none of the cluster's pods': added by hand, or of a shard that is no longer wanted.
    pub fn is_outside(&self, expected: &HashSet<NodeAddress>) -> bool {
        !self.unreachable_by_all
            && self.pod.is_none()
            && self
                .address
                .is_some_and(|address| !expected.contains(&address))
    }
}

/// Everything that follows from the answers.
#[derive(Debug)]
pub struct Survey<'a> {
    /// What is wanted.
    pub wanted: &'a Wanted,
    /// All members.
    pub members: &'a [Member],
    /// Those that answered, by index.
    pub live: Vec<Live<'a>>,
    /// The missing.
    pub missing: BTreeMap<NodeId, MissingNode>,
    /// The primary of each shard, those that leave among them: the member that owns most of the slots owned within the shard, of
    /// equals one whose pod stays. In a shard that has yet to get its first slots, the member that is to get them.
    pub primaries: Vec<Option<Index>>,
    /// Slots without any claim.
    pub free: SlotSet,
    by_id: HashMap<NodeId, Index>,
    owned: HashMap<NodeId, SlotSet>,
}

impl<'a> Survey<'a> {
    /// Draws the conclusions.
    pub fn of(wanted: &'a Wanted, members: &'a [Member]) -> Self {
        let live: Vec<Live<'a>> = members
            .iter()
            .enumerate()
            .filter_map(|(index, member)| {
                let report = member.report()?;
                Some(Live {
                    index,
                    member,
                    report,
                })
            })
            .collect();
        let by_id: HashMap<NodeId, Index> = live
            .iter()
            .map(|one| (one.report.id(), one.index))
            .collect();
        let mut missing = find_missing(&live, &by_id);
        for (id, missing_node) in &mut missing {
            let announced = || announced_pod(missing_node.hostname.as_deref()?, members);
            let pod = wanted.known.get(id).map(String::as_str);
            missing_node.home = pod.or_else(announced).and_then(|pod| {
                let mut members = members.iter();
                members.position(|one| one.expected.pod == pod)
            });
            let home = missing_node.home.and_then(|index| members.get(index));
            let away = home.filter(|one| one.report().is_none());
            missing_node.pod = away.map(|one| one.expected.pod.clone());
            missing_node.busy = home.is_some_and(|one| one.answer == Answer::Busy);
            missing_node.recorded = wanted.known.contains_key(id);
        }
        let owned = owned(&live, &by_id);
        let free = owned
            .values()
            .fold(SlotSet::full(), |free, slots| free.difference(slots));
        for (id, missing_node) in &mut missing {
            missing_node.slots = owned.get(id).cloned().unwrap_or_default();
        }
        let last = members.iter().map(|member| member.expected.shard + 1).max();
        let shards = wanted.shards.max(last.unwrap_or_default());
        let primaries = (0..shards)
            .map(|shard| primary_of_shard(shard, &live, &owned))
            .collect();
        let mut survey = Self {
            wanted,
            members,
            live,
            missing,
            primaries,
            free,
            by_id,
            owned,
        };
        survey.choose_first_primaries();
        survey
    }

    /// In a cluster whose slots all have a primary, a shard that the spec has added gets one without slots, which the other nodes of the
    /// shard then copy.
    fn choose_first_primaries(&mut self) {
        if !self.free.is_empty() {
            return;
        }
        for shard in 0..self.wanted.shards {
            if self.primary_of(shard).is_none() {
                let chosen = first_primary(self, shard);
                if let Some(primary) = self.primaries.get_mut(shard) {
                    *primary = chosen;
                }
            }
        }
    }

    /// Shards that are wanted or still have pods.
    pub fn shards(&self) -> usize {
        self.primaries.len()
    }

    /// Nodes that are wanted or still have pods.
    pub fn size(&self) -> usize {
        let leaving = self.members.iter().filter(|one| !one.expected.wanted);
        self.wanted.nodes() + leaving.count()
    }

    /// Whether there may be data: it has been recorded that the cluster served, or a node has keys, which takes no record.
    pub fn may_have_data(&self) -> bool {
        self.wanted.formed_before || self.live.iter().any(|one| one.report.keys > 0)
    }

    /// Slots of nodes that are gone for certain and that no member replicates. A living node keeps its slots, wherever it runs.
    pub fn lost(&self) -> SlotSet {
        self.missing
            .iter()
            .filter(|(id, missing_node)| {
                missing_node.replicas.is_empty() && missing_node.is_gone() && !self.may_return(**id)
            })
            .fold(SlotSet::new(), |lost, (_, missing_node)| {
                lost.union(&missing_node.slots)
            })
    }

    /// Whether the pod that a missing node was last seen in does not exist and is not wanted, while its volume may: the StatefulSet is made
    /// large enough for it (`sets`), and then it answers or is gone. So it is with a shard that leaves when a cluster is resumed.
    pub fn may_return(&self, id: NodeId) -> bool {
        let pod = self.wanted.known.get(&id);
        self.has_volumes()
            && pod.is_some_and(|pod| {
                let mut members = self.members.iter();
                members.all(|one| one.expected.pod != *pod)
            })
    }

    /// Whether data may be on volumes: by the spec, or in a pod that was made for another one.
    pub fn has_volumes(&self) -> bool {
        let mut members = self.members.iter();
        self.wanted.persistent || members.any(|one| one.expected.has_volume)
    }

    /// Whether what a lost node had may be on a volume.
    pub fn may_have_volume(&self, lost: &MissingNode) -> bool {
        let home = self.home(lost);
        home.map_or(self.has_volumes(), |home| home.expected.has_volume)
    }

    /// The slots whose newest claim is the node's; none if there is no such slot.
    pub fn owned_by(&self, id: NodeId) -> Option<&SlotSet> {
        self.owned.get(&id)
    }

    /// The addresses of the expected nodes.
    pub fn addresses(&self) -> HashSet<NodeAddress> {
        let members = self.members.iter();
        members.filter_map(|one| one.expected.address).collect()
    }

    /// The member that answered with this id.
    pub fn by_id(&self, id: NodeId) -> Option<Live<'a>> {
        self.by_index(*self.by_id.get(&id)?)
    }

    /// The member with this index, if it answered.
    pub fn by_index(&self, index: Index) -> Option<Live<'a>> {
        let position = self.live.binary_search_by_key(&index, |one| one.index);
        self.live.get(position.ok()?).copied()
    }

    /// The primary of a shard.
    pub fn primary_of(&self, shard: usize) -> Option<Live<'a>> {
        self.by_index((*self.primaries.get(shard)?)?)
    }

    /// The members of a shard that answered.
    pub fn live_in(&self, shard: usize) -> impl Iterator<Item = Live<'a>> + '_ {
        self.live
            .iter()
            .copied()
            .filter(move |one| one.shard() == shard)
    }

    /// Whether every node of the cluster answered.
    pub fn all_live(&self) -> bool {
        self.members.len() >= self.size() && self.live.len() == self.members.len()
    }

    /// Whether every node of the shard answered: a missing node of this shard then has no pod left to come back in.
    pub fn shard_all_live(&self, shard: usize) -> bool {
        let expected = self
            .members
            .iter()
            .filter(|member| member.expected.shard == shard);
        let (mut wanted, mut all_answered) = (0, true);
        for member in expected {
            wanted += usize::from(member.expected.wanted);
            all_answered &= member.report().is_some();
        }
        let needed = if shard < self.wanted.shards {
            self.wanted.nodes_per_shard()
        } else {
            0
        };
        all_answered && wanted >= needed
    }

    /// Whether no node has slots, keys or a role: the cluster has yet to be formed.
    pub fn is_fresh(&self) -> bool {
        self.free.len() == usize::from(SLOT_COUNT)
            && self.live.iter().all(|one| one.report.is_blank())
    }

    /// Primaries that are alive (they answered, a member is linked to them, or they are busy), and primaries in all. A majority of them
    /// elects.
    pub fn quorum(&self) -> (usize, usize) {
        let answered = self
            .live
            .iter()
            .filter(|one| one.report.own().is_primary() && !one.report.own().slots.is_empty())
            .count();
        let owners = self.missing.values().filter(|one| !one.slots.is_empty());
        let (lost, alive): (Vec<&MissingNode>, Vec<&MissingNode>) =
            owners.partition(|one| one.is_lost());
        (answered + alive.len(), answered + alive.len() + lost.len())
    }

    /// Primaries that give no sign of life.
    pub fn lost_primaries(&self) -> impl Iterator<Item = (NodeId, &MissingNode)> + '_ {
        let missing = self.missing.iter();
        missing
            .filter(|(_, one)| !one.slots.is_empty() && one.is_lost())
            .map(|(id, one)| (*id, one))
    }

    /// Whether the primaries that are alive are the majority.
    pub fn has_quorum(&self) -> bool {
        let (live, all) = self.quorum();
        live * 2 > all
    }

    /// Whether all the members of a shard that gave no report have been waited for this long. One that is loading or busy is alive, and
    /// what it loads may be just what is being waited for, however long that takes.
    pub fn is_overdue(&self, shard: usize, patience: Duration, now: Timestamp) -> bool {
        self.members
            .iter()
            .filter(|member| member.expected.shard == shard)
            .all(|member| match &member.answer {
                Answer::Report(_) => true,
                Answer::Loading | Answer::Busy => false,
                Answer::Absent(_) | Answer::Unresponsive(_) | Answer::Foreign(_) => {
                    member.expected.down_since.is_some_and(|since| {
                        now.duration_since(since).unsigned_abs() >= patience && now >= since
                    })
                }
            })
    }

    /// The expected node in which a missing one was last seen.
    pub fn home(&self, missing_node: &MissingNode) -> Option<&'a Member> {
        self.members.get(missing_node.home?)
    }

    /// The shard of the pod that a missing node was last seen in, whatever runs in that pod now.
    pub fn home_shard(&self, missing_node: &MissingNode) -> Option<usize> {
        Some(self.home(missing_node)?.expected.shard)
    }

    /// A member of the shard that is loading its data.
    pub fn loading_in(&self, shard: usize) -> Option<&'a Member> {
        self.members
            .iter()
            .find(|member| member.expected.shard == shard && member.answer == Answer::Loading)
    }

    /// The shard a slot belongs to in a new cluster.
    #[allow(clippy::cast_possible_truncation)] // slots fit into every usize
    pub fn home_of(&self, slot: Slot) -> usize {
        // Shard s begins at ceil(s × 16384 / shards), as even as can be.
        slot.index() * self.wanted.shards / usize::from(SLOT_COUNT)
    }
}

/// Whether a node that members of the shard copy is gone for good, and had neither slots nor keys to copy: it was lost before its shard
/// got slots, and what runs in its pod now has another id.
fn left_nothing(survey: &Survey<'_>, shard: usize, id: NodeId) -> bool {
    let is_gone = survey.missing.get(&id).is_some_and(|missing_node| {
        missing_node.is_gone()
            && missing_node.pod.is_none()
            && !missing_node.listed_with_slots
            && missing_node.slots.is_empty()
    });
    let mut copies = survey
        .live_in(shard)
        .filter(|one| one.report.own().primary == Some(id));
    is_gone && survey.shard_all_live(shard) && copies.all(|one| one.report.keys == 0)
}

/// The node that a shard without slots begins with: the one that slots are moving to, else the one that others of it copy already, else a
/// blank one on the Kubernetes node with the fewest primaries. None while the shard may have had slots before: their node, or a copy of it,
/// may still come back.
fn first_primary(survey: &Survey<'_>, shard: usize) -> Option<Index> {
    let had_slots = |missing: &MissingNode| {
        survey.home_shard(missing) == Some(shard)
            && (missing.listed_with_slots || !missing.slots.is_empty())
    };
    if survey.missing.values().any(had_slots) {
        return None;
    }
    let ids: HashSet<NodeId> = survey.live_in(shard).map(|one| one.report.id()).collect();
    let copied: HashSet<NodeId> = survey
        .live_in(shard)
        .filter_map(|one| one.report.own().primary)
        .collect();
    // A copy of a primary that lives in another shard keeps nothing that this one had.
    let mut elsewhere = copied
        .difference(&ids)
        .filter(|id| survey.by_id(**id).is_none());
    if elsewhere.any(|id| !left_nothing(survey, shard, *id)) {
        return None;
    }
    let load = |one: &Live<'_>| {
        let node = one.member.expected.kubernetes_node.as_deref();
        let primaries = survey.primaries.iter().flatten();
        let others = primaries.filter_map(|index| survey.by_index(*index));
        others
            .filter(|other| {
                node.is_some() && other.member.expected.kubernetes_node.as_deref() == node
            })
            .count()
    };
    let candidates = survey
        .live_in(shard)
        .filter(|one| one.report.is_blank() || one.report.gets_first_slots());
    let chosen = candidates.min_by_key(|one| {
        let expected = &one.member.expected;
        let is_copied = copied.contains(&one.report.id());
        (
            !one.report.gets_first_slots(),
            !is_copied,
            expected.terminating,
            load(one),
            expected.ordinal,
        )
    })?;
    Some(chosen.index)
}

/// All nodes in tables that answered at no expected address; handshakes are not yet nodes.
fn find_missing(
    live: &[Live<'_>],
    by_id: &HashMap<NodeId, Index>,
) -> BTreeMap<NodeId, MissingNode> {
    let mut missing: BTreeMap<NodeId, MissingNode> = BTreeMap::new();
    for one in live {
        for node in one.report.view.others() {
            if by_id.contains_key(&node.id) || node.flags.has(Flag::Handshake) {
                continue;
            }
            let missing_node = missing.entry(node.id).or_insert_with(|| MissingNode {
                unreachable_by_all: true,
                failing_by_all: true,
                ..MissingNode::default()
            });
            missing_node.known_by.push(one.index);
            missing_node.address = missing_node.address.or(node.address);
            if missing_node.hostname.is_none() {
                missing_node.hostname.clone_from(&node.hostname);
            }
            missing_node.listed_with_slots |= !node.slots.is_empty();
            missing_node.failing_by_all &= node.is_failing();
            missing_node.unreachable_by_all &=
                node.is_failing() || node.address.is_none() || !node.linked;
        }
        if let Some(primary) = one.report.own().primary
            && let Some(missing_node) = missing.get_mut(&primary)
        {
            missing_node.replicas.push(one.index);
        }
    }
    missing
}

/// Who owns what: the newest claim to a slot wins. Of a member that answered only its own claim counts; of a missing node, what the
/// others list.
fn owned(live: &[Live<'_>], by_id: &HashMap<NodeId, Index>) -> HashMap<NodeId, SlotSet> {
    let mut claims: Vec<(u64, NodeId, &SlotSet)> = live
        .iter()
        .flat_map(|one| one.report.view.nodes())
        .filter(|node| {
            let by_own_word = node.flags.has(Flag::Myself);
            node.is_primary()
                && !node.slots.is_empty()
                && (by_own_word || !by_id.contains_key(&node.id))
        })
        .map(|node| (node.config_epoch, node.id, &node.slots))
        .collect();
    claims.sort_unstable_by_key(|(epoch, id, _)| Reverse((*epoch, *id)));
    // Nearly all nodes list the same of a missing one.
    claims.dedup();
    let mut taken = SlotSet::new();
    let mut owned: HashMap<NodeId, SlotSet> = HashMap::new();
    for (_, id, slots) in claims {
        let won = slots.difference(&taken);
        if !won.is_empty() {
            taken = taken.union(&won);
            let all = owned.entry(id).or_default();
            *all = all.union(&won);
        }
    }
    owned
}

fn primary_of_shard(
    shard: usize,
    live: &[Live<'_>],
    owned: &HashMap<NodeId, SlotSet>,
) -> Option<Index> {
    live.iter()
        .filter(|one| one.shard() == shard)
        .filter_map(|one| Some((owned.get(&one.report.id())?.len(), one)))
        .max_by_key(|(slots, one)| (*slots, one.member.expected.wanted, Reverse(one.index)))
        .map(|(_, one)| one.index)
}
