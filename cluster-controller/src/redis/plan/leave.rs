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
    // Marks of replicas may be long out of date, and nothing closes them.
    let has_open_slots = |one: &Live<'_>| {
        let own = one.report.own();
        own.is_primary() && !own.open_slots.is_empty()
    };
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
