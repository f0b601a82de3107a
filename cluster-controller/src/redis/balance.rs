//! Whether slots have to move between shards: after the spec has added or taken away shards, and where a move was interrupted. Pure.

use super::{
    member::Member,
    reshard::{ShardLoad, misplaced},
    survey::{Live, Survey},
};
use common::cluster::{info::UpstreamLink, slots::SLOT_COUNT, topology::NodeId};
use std::collections::BTreeSet;

/// Slots that a shard may have more or fewer than its share, in per cent: less is not worth a move.
const TOLERANCE: usize = 2;

/// Which shards are to have the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReshardGoal {
    /// How many shards the spec asks for.
    pub shards: usize,
    /// Their primaries; none while the balance is not known.
    pub staying: BTreeSet<NodeId>,
}

impl ReshardGoal {
    /// Whether moves with this goal have to stop, given the goal that there is now. The spec alone can say so: moves would otherwise go on
    /// to shards that leave for as long as a node does not answer.
    pub fn is_outdated_by(&self, now: &Self) -> bool {
        self.shards != now.shards || !now.staying.is_empty() && self.staying != now.staying
    }
}

/// How the slots are distributed, compared with how they are to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// Shards that the spec asks for.
    pub wanted: usize,
    /// The shards with a primary, as the planner of moves needs them.
    pub shards: Vec<ShardLoad>,
    /// Slots that are to be in another shard.
    pub misplaced: usize,
    /// Slots that a primary reports as open.
    pub open: usize,
    /// Primaries that hold keys of slots which others serve: clients are sent to those for them.
    pub strays: usize,
    /// Replicas that do not follow yet, of shards that are to get slots: the source deletes each key that has moved, and it would be in one
    /// place only.
    pub copying: usize,
    /// Pods without an answer, each with the cause, while the shards with slots are others than the spec asks for: no slot moves before.
    pub silent: Vec<(String, String)>,
}

impl Balance {
    /// What moves of slots aim at.
    pub fn goal(&self) -> ReshardGoal {
        let staying = self.shards.iter().filter(|shard| shard.stays);
        ReshardGoal {
            shards: self.wanted,
            staying: staying.map(|shard| shard.primary).collect(),
        }
    }

    /// Whether there is something to do.
    pub fn needs_moves(&self) -> bool {
        self.silent.is_empty() && (self.misplaced > 0 || self.open > 0 || self.strays > 0)
    }
}

/// Looks at the slots. Nothing has to move before every slot has a living primary, and while a member does not answer: its slots may be
/// somewhere else by now.
pub fn balance(survey: &Survey<'_>) -> Balance {
    let has_silent = survey.members.iter().any(|one| one.report().is_none());
    // One that is gone and has no slots is no obstacle: a node that expects slots of it lists it until they are settled.
    let mut missing = survey.missing.values();
    let is_doubtful = missing.any(|one| !one.slots.is_empty() || !one.is_lost());
    if !survey.free.is_empty() || is_doubtful || has_silent {
        return waiting(survey);
    }
    let shards = loads(survey);
    let open = survey.live.iter();
    let open = open.map(|one| one.report.open_slots().len()).sum();
    let strays = survey.live.iter().filter(|one| {
        let own = one.report.own();
        let hidden = one.report.strays > 0 || own.slots.is_empty() && one.report.keys > 0;
        own.is_primary() && hidden
    });
    let strays = strays.count();
    let copying = copying(survey, &shards);
    let uneven = misplaced(&shards);
    let all: usize = shards.iter().map(|one| one.slots.len()).sum();
    let changed = shards.iter().any(|one| one.stays == one.slots.is_empty());
    Balance {
        wanted: survey.wanted.shards,
        misplaced: if changed || uneven * 100 > all * TOLERANCE {
            uneven
        } else {
            0
        },
        shards,
        open,
        strays,
        copying,
        silent: Vec::new(),
    }
}

/// The balance where nothing may move: the pods that this waits for, if the shards with slots are to be others.
fn waiting(survey: &Survey<'_>) -> Balance {
    let shards = loads(survey);
    let mut missing = survey.missing.values();
    let is_whole = survey.free.is_empty() && missing.all(|one| one.slots.is_empty());
    let staying = shards.iter().filter(|one| one.stays).count();
    let changed = shards.iter().any(|one| one.stays == one.slots.is_empty());
    // The pods of a new shard may not run yet.
    let grows = is_whole && staying < survey.wanted.shards;
    let silent: Vec<(String, String)> = if changed || grows {
        let silent = survey.members.iter().filter(|one| one.report().is_none());
        silent.map(Member::explained).collect()
    } else {
        Vec::new()
    };
    let misplaced = if silent.is_empty() {
        0
    } else {
        beyond_shares(&shards, survey.wanted.shards)
    };
    Balance {
        wanted: survey.wanted.shards,
        misplaced,
        silent,
        ..Balance::default()
    }
}

/// Slots that shards have beyond their shares, with so many shards in all: those of a shard that leaves are all to move.
fn beyond_shares(shards: &[ShardLoad], wanted: usize) -> usize {
    let share = usize::from(SLOT_COUNT).div_ceil(wanted.max(1));
    let beyond = |one: &ShardLoad| {
        let kept = if one.stays { share } else { 0 };
        one.slots.len().saturating_sub(kept)
    };
    shards.iter().map(beyond).sum()
}

/// The primary of each shard; and every other one that has slots, as if its shard were to leave: a shard has one primary, and this one copies
/// it once its slots have gone.
fn loads(survey: &Survey<'_>) -> Vec<ShardLoad> {
    let load = |one: Live<'_>, stays| {
        let id = one.report.id();
        let slots = survey.owned_by(id).cloned().unwrap_or_default();
        ShardLoad {
            primary: id,
            slots,
            stays,
        }
    };
    let first = survey.primaries.iter().enumerate();
    let first = first.filter_map(|(shard, index)| {
        let primary = survey.by_index((*index)?)?;
        Some(load(primary, shard < survey.wanted.shards))
    });
    let others = survey.live.iter().copied().filter(|one| {
        let owned = survey.owned_by(one.report.id());
        owned.is_some_and(|slots| !slots.is_empty())
            && survey.primaries.get(one.shard()) != Some(&Some(one.index))
    });
    first.chain(others.map(|one| load(one, false))).collect()
}

fn copying(survey: &Survey<'_>, shards: &[ShardLoad]) -> usize {
    let share = usize::from(SLOT_COUNT) / survey.wanted.shards.max(1);
    let gets_slots = |id: NodeId| {
        let mut shards = shards.iter();
        shards.any(|one| one.primary == id && one.stays && one.slots.len() < share)
    };
    let replicas = survey
        .live
        .iter()
        .filter(|one| one.report.own().primary.is_some_and(gets_slots));
    let follows = |one: &Live<'_>| {
        let link = one.report.replication.upstream.as_ref();
        link.is_some_and(UpstreamLink::follows)
    };
    replicas.filter(|one| !follows(one)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::{
        member::{Answer, ExpectedNode, Report},
        plan::tests::{becomes_primary, formed},
    };
    use k8s_openapi::jiff::Timestamp;

    /// What the first replica reports.
    fn replica(members: &mut [Member]) -> &mut Report {
        let mut reports = members.iter_mut().filter_map(|member| {
            let Answer::Report(report) = &mut member.answer else {
                return None;
            };
            report.own().is_replica().then_some(report)
        });
        reports.next().unwrap()
    }

    #[test]
    fn a_formed_cluster_is_balanced() {
        let world = formed(3, 1, true);
        let members = world.members(Timestamp::UNIX_EPOCH);
        let found = balance(&Survey::of(&world.wanted, &members));
        assert_eq!((found.shards.len(), found.misplaced, found.open), (3, 0, 0));
        assert!(!found.needs_moves());
    }

    /// A user has given slots to a replica, after a reset.
    #[test]
    fn two_primaries_of_a_shard_become_one() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let second = replica(&mut members);
        let id = second.id();
        becomes_primary(second, 90, "100-199");
        let found = balance(&Survey::of(&world.wanted, &members));
        assert_eq!((found.shards.len(), found.misplaced), (4, 100));
        assert!(!found.goal().staying.contains(&id));
        assert!(found.needs_moves());
    }

    /// Its replica does not follow while the shard is to get slots; afterwards that is no matter.
    #[test]
    fn slots_wait_for_the_replicas_of_their_new_shard() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let report = replica(&mut members);
        report.replication.upstream.as_mut().unwrap().up = false;
        let copying = |shards: usize| {
            let mut wanted = world.wanted.clone();
            wanted.shards = shards;
            balance(&Survey::of(&wanted, &members)).copying
        };
        assert_eq!([copying(3), copying(2)], [0, 1]);
    }

    /// Only once every slot has a primary that its keys can return to.
    #[test]
    fn keys_of_a_primary_without_slots_are_to_return() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let stray = replica(&mut members);
        becomes_primary(stray, 9, "");
        stray.keys = 5;
        let found = balance(&Survey::of(&world.wanted, &members));
        assert_eq!((found.strays, found.needs_moves()), (1, true));
        members[0].answer = Answer::Loading;
        let found = balance(&Survey::of(&world.wanted, &members));
        assert!(!found.needs_moves());
    }

    /// Any pod without an answer keeps slots from moving: the status says which.
    #[test]
    fn pods_that_keep_slots_from_moving_are_named() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let index = (0..6).find(|index| !world.owns(*index)).unwrap();
        members[index].answer = Answer::Absent("0/3 nodes are available".into());
        let named = |shards: usize| {
            let mut wanted = world.wanted.clone();
            wanted.shards = shards;
            let found = balance(&Survey::of(&wanted, &members));
            assert!(!found.needs_moves());
            (found.silent, found.misplaced > 0)
        };
        assert_eq!(named(3), (vec![], false));
        let pod = members[index].expected.pod.clone();
        let cause = "0/3 nodes are available".to_owned();
        assert_eq!(named(2), (vec![(pod, cause)], true));
    }

    /// As long as none of them runs there is no new shard yet; a primary that does not answer is no new shard.
    #[test]
    fn pods_of_a_new_shard_that_wait_are_named() {
        let mut world = formed(3, 1, true);
        let formed = world.members(Timestamp::UNIX_EPOCH);
        world.wanted.shards = 4;
        let absent = Member {
            expected: ExpectedNode::new("sim-3-0".into(), 3, 0),
            answer: Answer::Absent("0/3 nodes are available".into()),
        };
        let members: Vec<Member> = formed.iter().cloned().chain([absent]).collect();
        let found = balance(&Survey::of(&world.wanted, &members));
        let cause = "0/3 nodes are available".to_owned();
        assert_eq!(found.silent, [("sim-3-0".to_owned(), cause)]);
        assert!(found.misplaced.abs_diff(4096) < 3 && !found.needs_moves());

        world.wanted.shards = 3;
        let mut members = formed;
        members[0].answer = Answer::Unresponsive("no answer in time".into());
        let found = balance(&Survey::of(&world.wanted, &members));
        assert_eq!((found.silent, found.misplaced), (vec![], 0));
    }

    #[test]
    fn the_slots_of_a_shard_that_leaves_are_to_move() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let mut wanted = world.wanted.clone();
        wanted.shards = 2;
        for member in &mut members {
            member.expected.wanted = member.expected.shard < 2;
        }
        let found = balance(&Survey::of(&wanted, &members));
        assert_eq!(found.misplaced, found.shards[2].slots.len());
        assert!(!found.shards[2].stays);
        let before = found.goal();
        // The primary of another shard does not answer: nothing moves, and moves that were begun go on.
        members[0].answer = Answer::Loading;
        let found = balance(&Survey::of(&wanted, &members));
        assert!(!found.needs_moves());
        assert!(!before.is_outdated_by(&found.goal()));
        // They stop as soon as the spec asks for something else.
        wanted.shards = 3;
        let found = balance(&Survey::of(&wanted, &members));
        assert!(before.is_outdated_by(&found.goal()));
    }
}
