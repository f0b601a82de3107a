//! Primaries that are gone for good: a replica takes over where the servers' own failover cannot.
//!
//! The servers elect a replica by themselves when the primary's address goes dead and a majority of the primaries is left. They do
//! not when the majority is lost, nor when another node answers at the primary's address: its id is then kept without an
//! address ("PONG contains mismatching sender id" in the log) and never counts as failed.

use super::{Action, Blocker, Plan};
use crate::redis::survey::{Live, MissingNode, Survey};
use common::cluster::{node::FailoverMode, topology::NodeId};
use k8s_openapi::jiff::Timestamp;
use std::time::Duration;

/// Plans at most one promotion: the next look decides about the next one.
pub fn promote(survey: &Survey<'_>, now: Timestamp, plan: &mut Plan) {
    for (id, missing_node) in &survey.missing {
        if missing_node.slots.is_empty() {
            continue;
        }
        let Some(best) = best_replica(survey, missing_node) else {
            continue;
        };
        match decide(survey, *id, missing_node, best, now) {
            Ok((mode, why)) => {
                let action = Action::Promote {
                    member: best.index,
                    primary: *id,
                    mode,
                };
                plan.step(action, why);
                return;
            }
            Err(blocker) => plan.blockers.push(blocker),
        }
    }
}

/// The one that has applied the most of what the primary wrote.
fn best_replica<'a>(survey: &Survey<'a>, missing_node: &MissingNode) -> Option<Live<'a>> {
    missing_node
        .replicas
        .iter()
        .filter_map(|index| survey.by_index(*index))
        .max_by_key(|one| {
            let expected = &one.member.expected;
            (
                !expected.terminating,
                one.report.progress(),
                std::cmp::Reverse(expected.ordinal),
            )
        })
}

fn decide(
    survey: &Survey<'_>,
    id: NodeId,
    missing_node: &MissingNode,
    best: Live<'_>,
    now: Timestamp,
) -> Result<(FailoverMode, String), Blocker> {
    let (pod, shard) = (best.pod(), best.shard());
    let down = || Blocker::PrimaryDown {
        shard,
        id,
        loading: survey
            .loading_in(shard)
            .map(|member| member.expected.pod.clone()),
    };
    // A primary that any of ours is linked to is alive, wherever it runs.
    if !missing_node.unreachable_by_all {
        return Err(down());
    }
    let (voters, all) = survey.quorum();
    let (mode, how) = if survey.has_quorum() {
        (FailoverMode::Force, "by election".to_owned())
    } else {
        let how = format!("without an election, since only {voters} of {all} primaries are left");
        (FailoverMode::Takeover, how)
    };
    if survey.shard_all_live(shard) {
        return Ok((
            mode,
            format!(
                "the primary of {pod} is gone for good, no pod of its shard has its id: {pod} takes over {how}"
            ),
        ));
    }
    // The primary may still come back with its data: give it time.
    if !is_over(survey, best, now) {
        return Err(down());
    }
    // A replica that has never been linked looks like the copy of an empty shard: only a person knows which of both it is.
    if best.report.progress() == (0, 0) {
        return Err(Blocker::EmptyCopy {
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

/// Whether the primary has had its time. After a loss of everything the first to answer must not be the first to be served: the
/// time starts again when the replica itself has just come up.
fn is_over(survey: &Survey<'_>, best: Live<'_>, now: Timestamp) -> bool {
    let up = Duration::from_secs(best.report.server.uptime_seconds);
    up >= survey.wanted.patience && survey.patience_is_over(best.shard(), now)
}
