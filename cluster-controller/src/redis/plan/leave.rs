//! Primaries whose pods leave hand over to a node of their shard that stays.

use super::{Action, HandOverReason, Plan};
use crate::redis::{
    election::would_win,
    successor::successor,
    survey::{Live, Survey},
};

/// Plans at most one hand-over, and only where nothing is to be repaired and none has just failed.
pub fn hand_over(survey: &Survey<'_>, plan: &mut Plan) {
    // A replica that takes over knows nothing of slots that are open on its primary: their keys on both sides would stay apart.
    let has_open_slots = |one: &Live<'_>| !one.report.open_slots().is_empty();
    let may_hand_over = survey.wanted.may_hand_over && plan.steps.is_empty();
    if !may_hand_over || survey.live.iter().any(has_open_slots) {
        return;
    }
    for shard in 0..survey.wanted.shards {
        let Some(primary) = survey.primary_of(shard) else {
            continue;
        };
        if primary.member.expected.wanted {
            continue;
        }
        let best = successor(survey, shard, primary, |one| {
            let expected = &one.member.expected;
            expected.wanted && !expected.terminating
        });
        let Some(best) = best.filter(|best| would_win(survey, *best, primary)) else {
            continue;
        };
        let action = Action::HandOver {
            to: best.index,
            from: primary.index,
            reason: HandOverReason::Leave,
        };
        let (from, to) = (primary.pod(), best.pod());
        plan.step(
            action,
            format!("{from} leaves the cluster: {to} takes over"),
        );
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        Action, HandOverReason,
        tests::{formed, open_slot, plan},
    };
    use crate::redis::member::Member;
    use common::cluster::topology::OpenSlotKind;
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn a_mark_on_a_replica_keeps_no_primary_from_leaving() {
        let world = formed(3, 1, true);
        let mut members = world.members(Timestamp::UNIX_EPOCH);
        let (primary, replica) = if world.owns(0) { (0, 1) } else { (1, 0) };
        members[primary].expected.wanted = false;
        let peer = members[primary].report().unwrap().id();
        let leaves = |members: &[Member]| {
            let seen = plan(&world.wanted, members, Timestamp::UNIX_EPOCH);
            seen.steps.iter().any(|step| {
                let reason = HandOverReason::Leave;
                matches!(&step.action, Action::HandOver { reason: why, .. } if *why == reason)
            })
        };
        assert!(leaves(&members));
        for (index, expected) in [(replica, true), (primary, false)] {
            let mut marked = members.clone();
            open_slot(&mut marked[index], OpenSlotKind::Migrating, peer);
            assert_eq!(leaves(&marked), expected);
        }
    }
}
