//! Slots without an owner: given out when the cluster is formed, and again only where nothing can be lost by it.

use super::{Action, Assignment, Hold, Plan, text};
use crate::redis::{
    member::Member,
    survey::{Live, Survey},
};
use common::cluster::slots::SlotSet;
use k8s_openapi::jiff::Timestamp;
use std::{collections::HashMap, time::Duration};

/// Node timeout of a primary that is being formed.
const HURRY: Duration = Duration::from_secs(1);

/// Plans who gets the slots that have no owner. Whether there is such a step.
pub fn assign(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) -> bool {
    let lost = lost(survey);
    let orphaned = survey.free.union(&lost);
    if orphaned.is_empty() {
        return false;
    }
    let wanted = survey.wanted;
    if wanted.persistent && (wanted.formed_before || !lost.is_empty()) {
        if no_data_can_return(survey, &orphaned) {
            plan.holds.push(Hold::SlotsLost {
                slots: text(&orphaned),
                count: orphaned.len(),
            });
        }
        return false;
    }
    if !everybody_is_here(survey, now) {
        let missing = survey.members.iter().filter(|one| one.report().is_none());
        let mut pods: Vec<String> = missing.map(Member::explained).collect();
        let known = survey.members.len();
        if known < wanted.nodes() {
            pods.push(format!("{} pods yet to be created", wanted.nodes() - known));
        }
        plan.holds.push(Hold::WaitingForNodes { pods });
        return false;
    }
    give_out(survey, &orphaned, &lost, plan)
}

/// Plans to give primaries that serve by now their node timeout back.
pub fn calm(survey: &Survey<'_>, plan: &mut Plan) {
    let node_timeout = survey.wanted.node_timeout;
    for one in &survey.live {
        let hurried = one.report.node_timeout == HURRY && node_timeout != HURRY;
        if hurried && one.report.cluster.ok {
            let action = Action::Calm {
                member: one.index,
                node_timeout,
            };
            plan.step(action, format!("{} serves now", one.pod()));
        }
    }
}

/// Slots of ghosts that nobody replicates.
fn lost(survey: &Survey<'_>) -> SlotSet {
    survey
        .ghosts
        .values()
        .filter(|ghost| ghost.replicas.is_empty())
        .fold(SlotSet::new(), |lost, ghost| lost.union(&ghost.slots))
}

/// Whether the home of every orphaned slot is complete, so that no node with their keys is still to come.
fn no_data_can_return(survey: &Survey<'_>, orphaned: &SlotSet) -> bool {
    let mut homes: Vec<usize> = orphaned.iter().map(|slot| survey.home_of(slot)).collect();
    homes.dedup();
    homes.into_iter().all(|shard| survey.shard_all_live(shard))
}

/// A new cluster goes without the nodes that have been missing for long; slots that existed once are created again only when
/// every node has been asked.
fn everybody_is_here(survey: &Survey<'_>, now: Timestamp) -> bool {
    if survey.all_live() {
        return true;
    }
    !survey.wanted.formed_before
        && survey.ghosts.is_empty()
        && survey.members.len() == survey.wanted.nodes()
        && (0..survey.wanted.shards).all(|shard| {
            survey.live_in(shard).next().is_some() && survey.patience_is_over(shard, now)
        })
}

fn give_out(survey: &Survey<'_>, orphaned: &SlotSet, lost: &SlotSet, plan: &mut Plan) -> bool {
    let mut by_home: Vec<SlotSet> = vec![SlotSet::new(); survey.wanted.shards];
    for slot in orphaned.iter() {
        if let Some(home) = by_home.get_mut(survey.home_of(slot)) {
            home.insert(slot);
        }
    }
    let mut load = machines_of_owners(survey);
    let before = plan.steps.len();
    for (shard, slots) in by_home.iter().enumerate() {
        if slots.is_empty() {
            continue;
        }
        let owner = survey
            .owner(shard)
            .or_else(|| outvoted(survey, shard, slots));
        let Some(primary) = owner.or_else(|| choose(survey, shard, &load)) else {
            hold(survey, shard, slots, plan);
            continue;
        };
        if let Some(machine) = &primary.member.place.machine {
            *load.entry(machine).or_default() += 1;
        }
        let recreated = !slots.intersection(lost).is_empty() || survey.wanted.formed_before;
        let Some(how) = how(survey, primary, slots, lost, shard) else {
            continue;
        };
        let reason = if recreated {
            format!(
                "every node that had the slots {} is gone and the data lived in memory only: they are created again, empty",
                text(slots)
            )
        } else {
            format!("the slots {} have no owner yet", text(slots))
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
) -> Option<Assignment> {
    let own = primary.report.own();
    let listed = primary
        .report
        .view
        .nodes()
        .iter()
        .fold(SlotSet::new(), |listed, node| listed.union(&node.slots))
        .intersection(slots);
    if !slots.intersection(lost).is_empty() {
        // A link alone is not enough: the epoch comes with the first message over it.
        let knows_epoch = primary.report.cluster.current_epoch >= newest_epoch(survey);
        return knows_epoch.then(|| Assignment::Recreated {
            listed: listed.ranges(),
        });
    }
    if primary.report.is_alone() && own.config_epoch == 0 {
        return Some(Assignment::Alone {
            epoch: shard as u64 + 1,
            hurry: (survey.wanted.node_timeout > HURRY).then_some(HURRY),
        });
    }
    Some(Assignment::Joined)
}

/// The newest claim that any node has heard of.
fn newest_epoch(survey: &Survey<'_>) -> u64 {
    let views = survey.live.iter().flat_map(|one| one.report.view.nodes());
    views
        .map(|node| node.config_epoch)
        .max()
        .unwrap_or_default()
}

/// The node that claims such slots, while the others still believe a newer claim of one that is gone.
fn outvoted<'a>(survey: &Survey<'a>, shard: usize, slots: &SlotSet) -> Option<Live<'a>> {
    survey
        .live_in(shard)
        .find(|one| !one.report.own().slots.intersection(slots).is_empty())
}

fn hold(survey: &Survey<'_>, shard: usize, slots: &SlotSet, plan: &mut Plan) {
    let with_keys = survey
        .live_in(shard)
        .find(|one| one.report.own().is_primary() && one.report.keys > 0);
    plan.holds.push(match with_keys {
        Some(one) => Hold::KeysWithoutSlots {
            pod: one.pod().to_owned(),
        },
        None => Hold::SlotsLost {
            slots: text(slots),
            count: slots.len(),
        },
    });
}

/// The node without keys whose machine has the fewest primaries: the loss of one machine must not take the majority.
fn choose<'a>(survey: &Survey<'a>, shard: usize, load: &HashMap<&str, usize>) -> Option<Live<'a>> {
    survey
        .live_in(shard)
        .filter(|one| one.report.is_blank())
        .min_by_key(|one| {
            let place = &one.member.place;
            let machine = place.machine.as_deref().and_then(|name| load.get(name));
            (
                place.leaving,
                machine.copied().unwrap_or_default(),
                place.ordinal,
            )
        })
}

fn machines_of_owners<'a>(survey: &Survey<'a>) -> HashMap<&'a str, usize> {
    let mut load = HashMap::new();
    for shard in 0..survey.wanted.shards {
        if let Some(machine) = survey
            .owner(shard)
            .and_then(|owner| owner.member.place.machine.as_deref())
        {
            *load.entry(machine).or_default() += 1;
        }
    }
    load
}
