//! Owners that are gone for good: a replica takes over where the servers' own failover cannot.
//!
//! The servers elect a replica by themselves when the owner's address goes dead and a majority of the owners is left. They do
//! not when the majority is lost, nor when another node answers at the owner's address: its id is then kept without an
//! address ("PONG contains mismatching sender id" in the log) and never counts as failed.

use super::{Action, Hold, Plan};
use crate::redis::survey::{Ghost, Live, Survey};
use common::cluster::{node::FailoverMode, topology::NodeId};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// Plans at most one promotion: the next look decides about the next one.
pub fn promote(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
    for (id, ghost) in &survey.ghosts {
        if ghost.slots.is_empty() {
            continue;
        }
        let Some(best) = best_replica(survey, ghost) else {
            continue;
        };
        match decide(survey, *id, ghost, best, now) {
            Ok((mode, why)) => {
                let action = Action::Promote {
                    member: best.index,
                    primary: *id,
                    mode,
                };
                plan.step(action, why);
                return;
            }
            Err(hold) => plan.holds.push(hold),
        }
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
    id: NodeId,
    ghost: &Ghost,
    best: Live<'_>,
    now: Timestamp,
) -> Result<(FailoverMode, String), Hold> {
    let (pod, shard) = (best.pod(), best.shard());
    let down = || Hold::OwnerDown {
        shard,
        id,
        loading: survey
            .loading_in(shard)
            .map(|member| member.place.pod.clone()),
    };
    let (voters, all) = survey.quorum();
    let (mode, how) = if survey.has_quorum() {
        (FailoverMode::Force, "by election".to_owned())
    } else if ghost.given_up_by_all {
        let how = format!("without an election, since only {voters} of {all} primaries are left");
        (FailoverMode::Takeover, how)
    } else {
        return Err(down());
    };
    if survey.shard_all_live(shard) {
        return Ok((
            mode,
            format!(
                "the primary of {pod} is gone for good, no pod of its shard has its id: {pod} takes over {how}"
            ),
        ));
    }
    // The owner may still come back with its data: give it time.
    if !(ghost.given_up_by_all && is_over(survey, best, now)) {
        return Err(down());
    }
    // A replica that has never been linked looks like the copy of an empty shard: only a person knows which of both it is.
    if best.report.progress() == (0, 0) {
        return Err(Hold::EmptyCopy {
            shard,
            id,
            pod: pod.to_owned(),
        });
    }
    let seconds = survey.wanted.patience.as_secs();
    Ok((
        mode,
        format!(
            "the primary of {pod} has been down for more than {seconds} s: {pod} takes over {how}"
        ),
    ))
}

/// Whether the owner has had its time. After a loss of everything the first to answer must not be the first to be served: the
/// time begins anew when the replica itself has just come up.
fn is_over(survey: &Survey<'_>, best: Live<'_>, now: Timestamp) -> bool {
    let up = Duration::from_secs(best.report.server.uptime_seconds);
    up >= survey.wanted.patience && survey.patience_is_over(best.shard(), now)
}
