//! Slots without a primary: given out when the cluster is formed, and again only where nothing can be lost by it.

use super::{
    Action, Assignment, Blocker, Doubt, Plan,
    begin::may_begin,
    fence, first_primaries,
    node_timeout::formation_node_timeout,
    restore::{self, Unclaimed},
    text,
};
use crate::redis::{
    member::Member,
    survey::{Live, Survey},
};
use common::cluster::slots::{Slot, SlotSet};
use crds::LostSlots;
use k8s_openapi::jiff::Timestamp;

/// Plans who gets the slots that have no primary. Whether there is such a step.
pub fn assign(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) -> bool {
    let lost = survey.lost();
    let orphaned = survey.free.union(&lost);
    if orphaned.is_empty() {
        return false;
    }
    if survey.all_live() {
        match restore::assign_again(survey, &survey.free, plan) {
            Unclaimed::Assigned => return true,
            Unclaimed::Waiting => return false,
            Unclaimed::Lost => {}
        }
    }
    let wanted = survey.wanted;
    if survey.has_volumes() && (survey.may_have_data() || !lost.is_empty()) {
        if let Some(pod) = has_their_data(survey, &survey.free) {
            plan.blockers.push(Blocker::SlotsUnassigned {
                slots: text(&survey.free),
                count: survey.free.len(),
                pod,
            });
            return false;
        }
        if !no_data_can_return(survey, &orphaned) {
            return false;
        }
        if wanted.recovery.lost_slots == LostSlots::Fail {
            return restore_or_report(survey, &orphaned, &lost, plan);
        }
    }
    if !may_begin(survey, now) {
        let missing = survey.members.iter().filter(|one| one.report().is_none());
        plan.blockers.push(Blocker::WaitingForNodes {
            pods: missing.map(Member::explained).collect(),
            absent: survey.size().saturating_sub(survey.members.len()),
        });
        return false;
    }
    if let Some(doubt) = unfenced(survey, &lost) {
        plan.blockers.push(Blocker::RecreationUnfenced {
            slots: text(&lost),
            doubt,
        });
        return false;
    }
    // A node that is gone may have taken over slots of one that lives on with their keys.
    match restore::assign_again(survey, &orphaned, plan) {
        Unclaimed::Assigned => true,
        Unclaimed::Waiting => false,
        Unclaimed::Lost => give_out(survey, &orphaned, &lost, plan),
    }
}

/// Without a majority the nodes that were seen to own the slots may serve them elsewhere.
fn unfenced(survey: &Survey<'_>, lost: &SlotSet) -> Option<Doubt> {
    if lost.is_empty() || survey.has_quorum() {
        return None;
    }
    fence::doubt(survey)
}

/// Plans that a replica which took over serves the slots that its lost primary got last; otherwise reports the slots as lost. Whether there is
/// such a step.
fn restore_or_report(
    survey: &Survey<'_>,
    orphaned: &SlotSet,
    lost: &SlotSet,
    plan: &mut Plan,
) -> bool {
    // One that is away may have more of their keys, or have got them since.
    let may_restore = survey.all_live() && unfenced(survey, lost).is_none();
    if may_restore && restore::restore_last_slots(survey, lost, plan) {
        return true;
    }
    plan.blockers.push(slots_lost(survey, orphaned));
    false
}

/// The pod of a living primary of a shard to which some of these slots belong: it has the shard's data, so that the slots were taken from
/// it and not lost.
fn has_their_data(survey: &Survey<'_>, slots: &SlotSet) -> Option<String> {
    let mut homes: Vec<usize> = slots.iter().map(|slot| survey.home_of(slot)).collect();
    homes.dedup();
    let mut primaries = homes
        .into_iter()
        .filter_map(|shard| survey.primary_of(shard));
    primaries.next().map(|one| one.pod().to_owned())
}

/// Whether no node with the keys of the orphaned slots is still to come. Where slots have moved, their keys may be in any pod.
fn no_data_can_return(survey: &Survey<'_>, orphaned: &SlotSet) -> bool {
    let mut homes: Vec<Option<usize>> = orphaned
        .iter()
        .map(|slot| last_home(survey, slot))
        .collect();
    homes.dedup();
    homes.into_iter().all(|home| match home {
        Some(shard) => survey.shard_all_live(shard),
        None => survey.all_live(),
    })
}

/// The shard in whose pod the slot's primary was last seen.
fn last_home(survey: &Survey<'_>, slot: Slot) -> Option<usize> {
    let mut missing = survey.missing.values();
    survey.home_shard(missing.find(|node| node.slots.contains(slot))?)
}

fn give_out(survey: &Survey<'_>, orphaned: &SlotSet, lost: &SlotSet, plan: &mut Plan) -> bool {
    let mut by_home: Vec<SlotSet> = vec![SlotSet::new(); survey.wanted.shards];
    for slot in orphaned.iter() {
        let known = last_home(survey, slot).filter(|shard| *shard < survey.wanted.shards);
        let home = known.unwrap_or_else(|| survey.home_of(slot));
        if let Some(home) = by_home.get_mut(home) {
            home.insert(slot);
        }
    }
    let has_none = |shard: &usize| {
        let slots = by_home.get(*shard).filter(|slots| !slots.is_empty());
        slots.is_some_and(|slots| primary(survey, *shard, slots).is_none())
    };
    let without: Vec<usize> = (0..by_home.len()).filter(has_none).collect();
    let first = first_primaries::choose(survey, &without);
    let newest = newest_epoch(survey);
    let before = plan.steps.len();
    for (shard, slots) in by_home.iter().enumerate() {
        if slots.is_empty() {
            continue;
        }
        let there = primary(survey, shard, slots);
        let Some(primary) = there.or_else(|| first.get(&shard).copied()) else {
            blocker(survey, shard, slots, plan);
            continue;
        };
        let recreated = !slots.intersection(lost).is_empty() || survey.wanted.formed_before;
        let Some(how) = how(survey, primary, slots, lost, shard, newest) else {
            continue;
        };
        let slots_text = text(slots);
        let reason = if matches!(how, Assignment::Restored { .. }) {
            format!(
                "no node claims the slots {slots_text} or has a key of them, and nodes list them with each other: {} serves them",
                primary.pod()
            )
        } else if recreated {
            format!(
                "every node that had the slots {slots_text} is gone together with their data: they are created again, empty"
            )
        } else {
            format!("the slots {slots_text} have no primary yet")
        };
        let action = Action::AssignSlots {
            member: primary.index,
            ranges: slots.ranges(),
            how,
        };
        plan.step(action, reason);
    }
    plan.steps.len() > before
}

/// None: the node has to learn the newest epoch from the others first, or its claim would be older than that of the node that
/// is gone.
fn how(
    survey: &Survey<'_>,
    primary: Live<'_>,
    slots: &SlotSet,
    lost: &SlotSet,
    shard: usize,
    newest_epoch: u64,
) -> Option<Assignment> {
    let own = primary.report.own();
    let listed = primary
        .report
        .view
        .nodes()
        .iter()
        .map(|node| node.slots.intersection(slots))
        .fold(SlotSet::new(), |listed, more| listed.union(&more));
    // A link alone is not enough: the epoch comes with the first message over it.
    let knows_epoch = primary.report.cluster.current_epoch >= newest_epoch;
    if !slots.intersection(lost).is_empty() {
        return knows_epoch.then(|| Assignment::Recreated {
            listed: listed.ranges(),
        });
    }
    if primary.report.is_alone() && own.config_epoch == 0 {
        return Some(Assignment::Alone {
            epoch: shard as u64 + 1,
            formation_node_timeout: formation_node_timeout(survey),
        });
    }
    if listed.is_empty() {
        return Some(Assignment::Joined);
    }
    // Those that it lists say the same of it, or of each other: it has to strike them out, and to outdo what others believe.
    knows_epoch.then(|| Assignment::Restored {
        listed: listed.ranges(),
    })
}

/// The newest claim that any node has heard of.
fn newest_epoch(survey: &Survey<'_>) -> u64 {
    let views = survey.live.iter().flat_map(|one| one.report.view.nodes());
    views
        .map(|node| node.config_epoch)
        .max()
        .unwrap_or_default()
}

/// The node that the slots of a shard belong to already.
fn primary<'a>(survey: &Survey<'a>, shard: usize, slots: &SlotSet) -> Option<Live<'a>> {
    let there = survey.primary_of(shard);
    there.or_else(|| outvoted(survey, shard, slots))
}

/// The node that claims such slots, while the others still believe a newer claim of one that is gone.
fn outvoted<'a>(survey: &Survey<'a>, shard: usize, slots: &SlotSet) -> Option<Live<'a>> {
    survey
        .live_in(shard)
        .find(|one| !one.report.own().slots.intersection(slots).is_empty())
}

fn slots_lost(survey: &Survey<'_>, slots: &SlotSet) -> Blocker {
    let has_keys = |one: &&Live<'_>| {
        let keys = one.report.unserved.as_ref();
        keys.is_some_and(|keys| !keys.intersection(slots).is_empty())
    };
    let holders = survey.live.iter().filter(has_keys);
    Blocker::SlotsLost {
        slots: text(slots),
        count: slots.len(),
        holders: holders.map(|one| one.pod().to_owned()).collect(),
    }
}

fn blocker(survey: &Survey<'_>, shard: usize, slots: &SlotSet, plan: &mut Plan) {
    let with_keys = survey
        .live_in(shard)
        .find(|one| one.report.own().is_primary() && one.report.keys > 0);
    plan.blockers.push(match with_keys {
        Some(one) => Blocker::KeysWithoutSlots {
            pod: one.pod().to_owned(),
            returning: false,
        },
        None => slots_lost(survey, slots),
    });
}
