//! Slots that no living node owns although a living primary has their keys: taken from it by hand (`CLUSTER DELSLOTS`), left over by an
//! interrupted repair, or taken over by a node that is gone since, with all that it had. The node that has their keys serves them again.
//!
//! Who had a slot is known by its keys, of which the primaries are asked; and where none has a key of it, by the tables of the others: a node
//! that strikes out a slot does not tell them, and they list it on. A slot of which neither says anything is left to `super::slots`.

use super::{Action, Assignment, Blocker, Plan, text};
use crate::redis::survey::{Index, Live, Survey};
use common::cluster::slots::SlotSet;
use std::collections::BTreeMap;

/// What becomes of slots that no living node owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unclaimed {
    /// No living primary is known to have had one of them.
    Lost,
    /// Their primaries serve them again.
    Assigned,
    /// It is not known yet who has them, or only a person can say.
    Waiting,
}

/// Plans that primaries serve again what they have of these slots, which no living node owns. The caller has made sure that none which is
/// away may have more of them.
pub fn assign_again(survey: &Survey<'_>, orphaned: &SlotSet, plan: &mut Plan) -> Unclaimed {
    if orphaned.is_empty() || !survey.may_have_data() {
        return Unclaimed::Lost;
    }
    let Some(keys) = keys(survey, orphaned) else {
        return Unclaimed::Waiting;
    };
    let (with_keys, contested) = overlap(keys.values());
    if !contested.is_empty() {
        let holders = keys.iter().filter(|(_, slots)| meets(slots, &contested));
        plan.blockers.push(Blocker::SlotsContested {
            slots: text(&contested),
            count: contested.len(),
            pods: holders
                .filter_map(|(index, _)| Some(survey.by_index(*index)?.pod().to_owned()))
                .collect(),
        });
    }
    let listed = listed(survey, orphaned);
    let (_, doubtful) = overlap(listed.values());
    let (mut assigned, mut postponed) = (false, false);
    for one in primaries(survey) {
        let of = |slots: &BTreeMap<Index, SlotSet>| slots.get(&one.index).cloned();
        let own = of(&keys).unwrap_or_default().difference(&contested);
        let empty = of(&listed).unwrap_or_default();
        let empty = empty.difference(&with_keys).difference(&doubtful);
        let slots = own.union(&empty);
        if !slots.is_empty() {
            let why = format!(
                "no living node owns the slots {} and {} has their keys: it serves them again",
                text(&slots),
                one.pod()
            );
            let is_planned = assign(survey, one, &slots, why, plan);
            assigned |= is_planned;
            postponed |= !is_planned;
        }
    }
    match (assigned, postponed || !contested.is_empty()) {
        (true, _) => Unclaimed::Assigned,
        (false, true) => Unclaimed::Waiting,
        (false, false) => Unclaimed::Lost,
    }
}

/// Plans that a replica which took over serves what its primary had got last, too: that was lost before the replica had heard of it
/// (it takes over what its own table lists, `clusterFailoverReplaceYourMaster` in the engine's `cluster.c`). The keys that it has there show that
/// it was a copy. Whether there is such a step.
pub fn restore_last_slots(survey: &Survey<'_>, lost: &SlotSet, plan: &mut Plan) -> bool {
    let Some(keys) = keys(survey, lost) else {
        return false;
    };
    let mut inherited: BTreeMap<Index, SlotSet> = BTreeMap::new();
    for missing_node in survey.missing.values().filter(|one| one.is_gone()) {
        let shard = survey.home_shard(missing_node);
        let Some(heir) = shard.and_then(|shard| survey.primary_of(shard)) else {
            continue;
        };
        let slots = missing_node.slots.intersection(lost);
        let mut others = keys.iter().filter(|(index, _)| **index != heir.index);
        let is_contested = others.any(|(_, keys)| meets(keys, &slots));
        let own = keys.get(&heir.index);
        if own.is_some_and(|own| meets(own, &slots)) && !is_contested {
            let all = inherited.entry(heir.index).or_default();
            *all = all.union(&slots);
        }
    }
    let mut assigned = false;
    for (index, slots) in inherited {
        let (Some(heir), Some(keys)) = (survey.by_index(index), keys.get(&index)) else {
            continue;
        };
        let pod = heir.pod();
        let why = format!(
            "{pod} took over from a primary that is gone and had got the slots {} last: {pod} has keys of {} of these {}, and serves them",
            text(&slots),
            keys.intersection(&slots).len(),
            slots.len()
        );
        assigned |= assign(survey, heir, &slots, why, plan);
    }
    assigned
}

fn primaries<'a>(survey: &'a Survey<'_>) -> impl Iterator<Item = Live<'a>> {
    let live = survey.live.iter().copied();
    live.filter(|one| one.report.own().is_primary())
}

fn meets(one: &SlotSet, other: &SlotSet) -> bool {
    !one.intersection(other).is_empty()
}

/// The slots of which each primary has keys; none while one has not counted.
fn keys(survey: &Survey<'_>, orphaned: &SlotSet) -> Option<BTreeMap<Index, SlotSet>> {
    let counted = primaries(survey).map(|one| {
        let counted = one.report.unserved.as_ref()?;
        Some((one.index, counted.intersection(orphaned)))
    });
    counted.collect()
}

/// The slots that the others list with each primary.
fn listed(survey: &Survey<'_>, orphaned: &SlotSet) -> BTreeMap<Index, SlotSet> {
    let mut listed: BTreeMap<Index, SlotSet> = BTreeMap::new();
    let views = survey.live.iter().flat_map(|one| one.report.view.others());
    for node in views.filter(|node| meets(&node.slots, orphaned)) {
        let primary = survey.by_id(node.id);
        if let Some(one) = primary.filter(|one| one.report.own().is_primary()) {
            let slots = listed.entry(one.index).or_default();
            *slots = slots.union(&node.slots.intersection(orphaned));
        }
    }
    listed
}

/// All slots of these sets, and those that are in several.
fn overlap<'a>(sets: impl Iterator<Item = &'a SlotSet>) -> (SlotSet, SlotSet) {
    let (mut all, mut several) = (SlotSet::new(), SlotSet::new());
    for slots in sets {
        several = several.union(&all.intersection(slots));
        all = all.union(slots);
    }
    (all, several)
}

/// Whether it can be done now, or only after a moment.
///
/// A node that has to take slots out of its own table needs the newest epoch, so that the others believe it.
fn assign(
    survey: &Survey<'_>,
    primary: Live<'_>,
    slots: &SlotSet,
    why: String,
    plan: &mut Plan,
) -> bool {
    let nodes = primary.report.view.nodes().iter();
    let listed = nodes.fold(SlotSet::new(), |all, node| all.union(&node.slots));
    let listed = listed.intersection(slots);
    let newest = survey
        .live
        .iter()
        .flat_map(|one| one.report.view.nodes())
        .map(|node| node.config_epoch)
        .max();
    if !listed.is_empty() && Some(primary.report.cluster.current_epoch) < newest {
        return false;
    }
    let action = Action::AssignSlots {
        member: primary.index,
        ranges: slots.ranges(),
        how: Assignment::Restored {
            listed: listed.ranges(),
        },
    };
    plan.step(action, why);
    true
}
