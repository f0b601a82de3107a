//! Facts that follow from all the answers together: who owns what, who is gone, who lags behind.

use super::member::{Answer, Member, Report, Wanted};
use common::cluster::{
    slots::{SLOT_COUNT, Slot, SlotSet},
    topology::{Flag, NodeId},
};
use k8s_openapi::jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};

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
        &self.member.place.pod
    }

    /// Its shard.
    pub fn shard(&self) -> usize {
        self.member.place.shard
    }
}

/// A node that is in somebody's table and did not answer at any place.
#[derive(Clone, Debug, Default)]
pub struct Ghost {
    /// Slots that are its own as far as anybody knows, and nobody else's with a newer epoch.
    pub slots: SlotSet,
    /// Whether any table still lists slots for it.
    pub listed_with_slots: bool,
    /// Members that have it in their table.
    pub known_by: Vec<Index>,
    /// Members that call themselves its replica.
    pub replicas: Vec<Index>,
    /// Whether every member that has it in its table holds it for failed, without address or without link.
    pub given_up_by_all: bool,
}

/// Everything that follows from the answers.
#[derive(Debug)]
pub struct Survey<'a> {
    /// What is wanted.
    pub wanted: &'a Wanted,
    /// All members.
    pub members: &'a [Member],
    /// Those that answered.
    pub live: Vec<Live<'a>>,
    /// The ghosts.
    pub ghosts: BTreeMap<NodeId, Ghost>,
    /// The owner of each shard: the member that owns most of the slots owned within the shard.
    pub owners: Vec<Option<Index>>,
    /// Slots nobody owns and nobody is listed with.
    pub free: SlotSet,
    by_id: HashMap<NodeId, Index>,
}

impl<'a> Survey<'a> {
    /// Thinks about the answers.
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
        let mut ghosts = find_ghosts(&live, &by_id);
        let owned = owned(&live, &by_id);
        let free = owned
            .values()
            .fold(SlotSet::full(), |free, slots| free.difference(slots));
        for (id, ghost) in &mut ghosts {
            ghost.slots = owned.get(id).cloned().unwrap_or_default();
        }
        let owners = (0..wanted.shards)
            .map(|shard| owner_of_shard(shard, &live, &owned))
            .collect();
        Self {
            wanted,
            members,
            live,
            ghosts,
            owners,
            free,
            by_id,
        }
    }

    /// The member that answered with this id.
    pub fn by_id(&self, id: NodeId) -> Option<Live<'a>> {
        self.by_index(*self.by_id.get(&id)?)
    }

    /// The member with this index, if it answered.
    pub fn by_index(&self, index: Index) -> Option<Live<'a>> {
        self.live.iter().find(|one| one.index == index).copied()
    }

    /// The owner of a shard.
    pub fn owner(&self, shard: usize) -> Option<Live<'a>> {
        self.by_index((*self.owners.get(shard)?)?)
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
        self.members.len() == self.wanted.nodes() && self.live.len() == self.members.len()
    }

    /// Whether every node of the shard answered: a ghost of this shard then has no place left to come back to.
    pub fn shard_all_live(&self, shard: usize) -> bool {
        let places = self
            .members
            .iter()
            .filter(|member| member.place.shard == shard);
        let (mut count, mut answered) = (0, 0);
        for member in places {
            count += 1;
            answered += usize::from(member.report().is_some());
        }
        count == self.wanted.nodes_per_shard() && answered == count
    }

    /// Whether nobody owns or remembers anything: the cluster has yet to be formed.
    pub fn is_fresh(&self) -> bool {
        self.free.len() == usize::from(SLOT_COUNT)
            && self.live.iter().all(|one| one.report.is_blank())
    }

    /// Owners that answered, and owners in all. A majority of them elects.
    pub fn quorum(&self) -> (usize, usize) {
        let live = self
            .live
            .iter()
            .filter(|one| one.report.own().is_primary() && !one.report.own().slots.is_empty())
            .count();
        let gone = self
            .ghosts
            .values()
            .filter(|ghost| !ghost.slots.is_empty())
            .count();
        (live, live + gone)
    }

    /// Whether the owners that answered are the majority.
    pub fn has_quorum(&self) -> bool {
        let (live, all) = self.quorum();
        live * 2 > all
    }

    /// Whether all the members of a shard that gave no report have been waited for longer than the wanted patience. One that is
    /// loading is alive, and what it loads may be just what is being waited for, however long that takes.
    pub fn patience_is_over(&self, shard: usize, now: Timestamp) -> bool {
        self.members
            .iter()
            .filter(|member| member.place.shard == shard)
            .all(|member| match &member.answer {
                Answer::Report(_) => true,
                Answer::Loading => false,
                Answer::Absent(_) | Answer::Silent(_) => {
                    member.place.down_since.is_some_and(|since| {
                        now.duration_since(since).unsigned_abs() >= self.wanted.patience
                            && now >= since
                    })
                }
            })
    }

    /// A member of the shard that is loading its data.
    pub fn loading_in(&self, shard: usize) -> Option<&'a Member> {
        self.members
            .iter()
            .find(|member| member.place.shard == shard && member.answer == Answer::Loading)
    }

    /// The shard a slot belongs to in a new cluster.
    #[allow(clippy::cast_possible_truncation)] // slots fit into every usize
    pub fn home_of(&self, slot: Slot) -> usize {
        // Shard s begins at ceil(s × 16384 / shards), as even as can be.
        slot.index() * self.wanted.shards / usize::from(SLOT_COUNT)
    }
}

/// All nodes in tables that did not answer at any place; handshakes are not yet nodes.
fn find_ghosts(live: &[Live<'_>], by_id: &HashMap<NodeId, Index>) -> BTreeMap<NodeId, Ghost> {
    let mut ghosts: BTreeMap<NodeId, Ghost> = BTreeMap::new();
    for one in live {
        for node in one.report.view.others() {
            if by_id.contains_key(&node.id) || node.flags.has(Flag::Handshake) {
                continue;
            }
            let ghost = ghosts.entry(node.id).or_insert_with(|| Ghost {
                given_up_by_all: true,
                ..Ghost::default()
            });
            ghost.known_by.push(one.index);
            ghost.listed_with_slots |= !node.slots.is_empty();
            ghost.given_up_by_all &= node.is_failing() || node.address.is_none() || !node.linked;
        }
        if let Some(primary) = one.report.own().primary
            && let Some(ghost) = ghosts.get_mut(&primary)
        {
            ghost.replicas.push(one.index);
        }
    }
    ghosts
}

/// Who owns what: the newest claim to a slot wins. Of a member that answered only its own word counts; of a ghost, what the
/// others remember of it.
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
    claims.sort_unstable_by_key(|(epoch, id, _)| std::cmp::Reverse((*epoch, *id)));
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

fn owner_of_shard(
    shard: usize,
    live: &[Live<'_>],
    owned: &HashMap<NodeId, SlotSet>,
) -> Option<Index> {
    live.iter()
        .filter(|one| one.shard() == shard)
        .filter_map(|one| Some((owned.get(&one.report.id())?.len(), one.index)))
        .max()
        .map(|(_, index)| index)
}
