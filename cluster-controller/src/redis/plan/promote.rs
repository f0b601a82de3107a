//! Owners that are gone for good: a replica takes over where the servers' own failover cannot.
//!
//! The servers elect a replica by themselves when the owner's address goes dead and a majority of the owners is left. They do
//! not when the majority is lost, nor when another node answers at the owner's address: its id is then kept without an
//! address ("PONG contains mismatching sender id" in the log) and never counts as failed.

use super::{Action, Hold, Plan};
use crate::redis::survey::{Ghost, Live, Survey};
use common::cluster::{node::FailoverMode, topology::NodeId};
use k8s_openapi::jiff::Timestamp;

/// Plans at most one promotion: the next look decides about the next one.
pub fn promote(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
    for (id, ghost) in &survey.ghosts {
        if ghost.slots.is_empty() {
            continue;
        }
        let Some(best) = best_replica(survey, ghost) else {
            continue;
        };
        match decide(survey, ghost, best, now) {
            Some((mode, why)) => {
                let action = Action::Promote {
                    member: best.index,
                    primary: *id,
                    mode,
                };
                plan.step(action, why);
                return;
            }
            None => plan.holds.push(down(best, *id)),
        }
    }
}

fn down(replica: Live<'_>, id: NodeId) -> Hold {
    Hold::OwnerDown {
        shard: replica.shard(),
        id,
    }
}

/// The one that has applied the most of what the owner wrote.
fn best_replica<'a>(survey: &Survey<'a>, ghost: &Ghost) -> Option<Live<'a>> {
    ghost
        .replicas
        .iter()
        .filter_map(|index| survey.by_index(*index))
        .max_by_key(|one| {
            let place = &one.member.place;
            (
                !place.leaving,
                one.report.progress(),
                std::cmp::Reverse(place.ordinal),
            )
        })
}

fn decide(
    survey: &Survey<'_>,
    ghost: &Ghost,
    best: Live<'_>,
    now: Timestamp,
) -> Option<(FailoverMode, String)> {
    let (voters, all) = survey.quorum();
    let mode = if survey.has_quorum() {
        FailoverMode::Force
    } else if ghost.given_up_by_all {
        FailoverMode::Takeover
    } else {
        return None;
    };
    let pod = best.pod();
    let how = match mode {
        FailoverMode::Takeover => {
            format!("without an election, since only {voters} of {all} primaries are left")
        }
        FailoverMode::Coordinated | FailoverMode::Force => "by election".to_owned(),
    };
    if survey.shard_all_live(best.shard()) {
        return Some((
            mode,
            format!(
                "the primary of {pod} is gone for good, no pod of its shard has its id: {pod} takes over {how}"
            ),
        ));
    }
    // The owner may still come back with its data: give it time, and give its place only to a copy.
    let copy = best.report.progress() != (0, 0);
    (ghost.given_up_by_all && copy && survey.patience_is_over(best.shard(), now)).then(|| {
        let seconds = survey.wanted.patience.as_secs();
        (
            mode,
            format!("the primary of {pod} has been down for more than {seconds} s: {pod} takes over {how}"),
        )
    })
}
