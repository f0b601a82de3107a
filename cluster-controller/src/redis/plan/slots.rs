//! Slots without a primary: given out when the cluster is formed, and again only where nothing can be lost by it.

use super::{Action, Assignment, Blocker, Plan, text};
use crate::redis::{
    member::{Answer, Member},
    survey::{Live, Survey},
};
use common::cluster::slots::SlotSet;
use k8s_openapi::jiff::Timestamp;
use std::{collections::HashMap, time::Duration};

/// Node timeout of a primary that is being formed.
const FORMATION_NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// Plans who gets the slots that have no primary. Whether there is such a step.
pub fn assign(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) -> bool {
    let lost = lost(survey);
    let orphaned = survey.free.union(&lost);
    if orphaned.is_empty() {
        return false;
    }
    let wanted = survey.wanted;
    if wanted.persistent && (wanted.formed_before || !lost.is_empty()) {
        if no_data_can_return(survey, &orphaned) {
            plan.blockers.push(Blocker::SlotsLost {
                slots: text(&orphaned),
                count: orphaned.len(),
            });
        }
        return false;
    }
    if !every_node_is_here(survey, now) {
        let missing = survey.members.iter().filter(|one| one.report().is_none());
        plan.blockers.push(Blocker::WaitingForNodes {
            pods: missing.map(Member::explained).collect(),
            absent: wanted.nodes().saturating_sub(survey.members.len()),
        });
        return false;
    }
    give_out(survey, &orphaned, &lost, plan)
}

/// Plans to give primaries that serve by now their node timeout back.
pub fn restore_node_timeout(survey: &Survey<'_>, plan: &mut Plan) {
    let node_timeout = survey.wanted.node_timeout;
    for one in &survey.live {
        let forming = one.report.node_timeout == FORMATION_NODE_TIMEOUT
            && node_timeout != FORMATION_NODE_TIMEOUT;
        if forming && one.report.cluster.ok {
            let action = Action::RestoreNodeTimeout {
                member: one.index,
                node_timeout,
            };
            plan.step(action, format!("{} serves now", one.pod()));
        }
    }
}

/// Slots of nodes that are gone for certain and that no member replicates. A living node keeps its slots, wherever it runs.
fn lost(survey: &Survey<'_>) -> SlotSet {
    survey
        .missing
        .values()
        .filter(|missing_node| missing_node.replicas.is_empty() && missing_node.is_gone())
        .fold(SlotSet::new(), |lost, missing_node| {
            lost.union(&missing_node.slots)
        })
}

/// Whether the home of every orphaned slot is complete, so that no node with their keys is still to come.
fn no_data_can_return(survey: &Survey<'_>, orphaned: &SlotSet) -> bool {
    let mut homes: Vec<usize> = orphaned.iter().map(|slot| survey.home_of(slot)).collect();
    homes.dedup();
    homes.into_iter().all(|shard| survey.shard_all_live(shard))
}

/// A new cluster goes without the nodes that have been missing for long; slots that existed once are created again only when
/// every node has been asked.
fn every_node_is_here(survey: &Survey<'_>, now: Timestamp) -> bool {
    if survey.all_live() {
        return true;
    }
    // What is still to be read, or belongs to others, may be what this cluster was before.
    let unclear = survey
        .members
        .iter()
        .any(|member| matches!(member.answer, Answer::Foreign(_) | Answer::Loading));
    !unclear
        && !survey.wanted.formed_before
        && survey.missing.is_empty()
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
    let mut load = kubernetes_nodes_of_primaries(survey);
    let before = plan.steps.len();
    for (shard, slots) in by_home.iter().enumerate() {
        if slots.is_empty() {
            continue;
        }
        let primary = survey
            .primary_of(shard)
            .or_else(|| outvoted(survey, shard, slots));
        let Some(primary) = primary.or_else(|| choose(survey, shard, &load)) else {
            blocker(survey, shard, slots, plan);
            continue;
        };
        if let Some(kubernetes_node) = &primary.member.expected.kubernetes_node {
            *load.entry(kubernetes_node).or_default() += 1;
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
            format!("the slots {} have no primary yet", text(slots))
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
            formation_node_timeout: (survey.wanted.node_timeout > FORMATION_NODE_TIMEOUT)
                .then_some(FORMATION_NODE_TIMEOUT),
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

fn blocker(survey: &Survey<'_>, shard: usize, slots: &SlotSet, plan: &mut Plan) {
    let with_keys = survey
        .live_in(shard)
        .find(|one| one.report.own().is_primary() && one.report.keys > 0);
    plan.blockers.push(match with_keys {
        Some(one) => Blocker::KeysWithoutSlots {
            pod: one.pod().to_owned(),
        },
        None => Blocker::SlotsLost {
            slots: text(slots),
            count: slots.len(),
        },
    });
}

/// The node without keys whose Kubernetes node has the fewest primaries: the loss of one must not take the majority.
fn choose<'a>(survey: &Survey<'a>, shard: usize, load: &HashMap<&str, usize>) -> Option<Live<'a>> {
    survey
        .live_in(shard)
        .filter(|one| one.report.is_blank())
        .min_by_key(|one| {
            let expected = &one.member.expected;
            let kubernetes_node = expected
                .kubernetes_node
                .as_deref()
                .and_then(|name| load.get(name));
            (
                expected.terminating,
                kubernetes_node.copied().unwrap_or_default(),
                expected.ordinal,
            )
        })
}

fn kubernetes_nodes_of_primaries<'a>(survey: &Survey<'a>) -> HashMap<&'a str, usize> {
    let mut load = HashMap::new();
    for shard in 0..survey.wanted.shards {
        if let Some(kubernetes_node) = survey
            .primary_of(shard)
            .and_then(|primary| primary.member.expected.kubernetes_node.as_deref())
        {
            *load.entry(kubernetes_node).or_default() += 1;
        }
    }
    load
}
