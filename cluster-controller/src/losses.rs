//! Keys that are about to be given up. The status names them before the command that does it: afterwards the slots are served, and a controller
//! that ends in between, or cannot write, would leave nothing that says what was lost. Pure.

use crate::redis::plan::Plan;
use common::sentence::{LIMIT, shortened};
use crds::LossStatus;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

/// Losses within this time are one: all of them are named.
const ONE_LOSS: SignedDuration = SignedDuration::from_mins(1);

/// What the status has to name before the steps of the plan are taken. None: it gives nothing up, or that is named.
pub fn unnamed(
    plan: &Plan,
    formed: bool,
    before: Option<&LossStatus>,
    now: Timestamp,
) -> Option<LossStatus> {
    // The same shard may be lost again, with the same words.
    let recent = before.filter(|before| now < before.time.0 + ONE_LOSS);
    let is_named = |reason: &str| recent.is_some_and(|recent| recent.message.contains(reason));
    let given_up = plan
        .steps
        .iter()
        .filter(|step| step.action.gives_keys_up(formed))
        .map(|step| step.reason.as_str());
    let reasons: Vec<&str> = given_up.filter(|reason| !is_named(reason)).collect();
    if reasons.is_empty() {
        return None;
    }
    // What is not found in a text that was cut may be what was cut out of it.
    if recent.is_some_and(|recent| is_full(&recent.message)) {
        return None;
    }
    let earlier = recent.map(|recent| recent.message.as_str());
    let all: Vec<&str> = earlier.into_iter().chain(reasons).collect();
    Some(LossStatus {
        time: Time(now),
        message: shortened(&all.join("; ")),
    })
}

/// Whether a text may have been cut: see [`shortened`], which leaves out blanks where it cuts.
fn is_full(text: &str) -> bool {
    text.chars().count() + 8 >= LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::{Action, Assignment, Step};

    fn step(how: Assignment, reason: &str) -> Step {
        Step {
            action: Action::AssignSlots {
                member: 0,
                ranges: Vec::new(),
                how,
            },
            reason: reason.to_owned(),
        }
    }

    fn recreated(reasons: &[&str]) -> Plan {
        let steps = reasons.iter().map(|reason| {
            let listed = Vec::new();
            step(Assignment::Recreated { listed }, reason)
        });
        Plan {
            steps: steps.collect(),
            blockers: Vec::new(),
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn slots_are_served_empty_once_that_is_named() {
        let plan = recreated(&["slots 0-9", "slots 20-29"]);
        let named = unnamed(&plan, true, None, at(10)).unwrap();
        assert_eq!(named.message, "slots 0-9; slots 20-29");
        assert_eq!(unnamed(&plan, true, Some(&named), at(11)), None);
        // One step was taken, the other failed.
        let rest = recreated(&["slots 20-29"]);
        assert_eq!(unnamed(&rest, true, Some(&named), at(12)), None);
    }

    #[test]
    fn first_slots_are_no_loss() {
        let plan = Plan {
            steps: vec![step(Assignment::Joined, "no primary yet")],
            blockers: Vec::new(),
        };
        assert_eq!(unnamed(&plan, false, None, at(10)), None);
        assert!(unnamed(&plan, true, None, at(10)).is_some());
        assert_eq!(unnamed(&Plan::default(), true, None, at(10)), None);
    }

    #[test]
    fn losses_at_once_are_named_together() {
        let first = unnamed(&recreated(&["slots 0-9"]), true, None, at(10)).unwrap();
        let next = recreated(&["slots 20-29"]);
        let named = |now| unnamed(&next, true, Some(&first), at(now)).unwrap().message;
        assert_eq!(named(30), "slots 0-9; slots 20-29");
        assert_eq!(named(100), "slots 20-29");
        // A list of slots may be short for itself.
        let short = unnamed(&recreated(&["slots 0,2,4,6,8,…"]), true, None, at(10)).unwrap();
        assert!(unnamed(&next, true, Some(&short), at(30)).is_some());
    }

    #[test]
    fn the_same_loss_again_is_another_one() {
        let plan = recreated(&["slots 0-9"]);
        let first = unnamed(&plan, true, None, at(10)).unwrap();
        let again = unnamed(&plan, true, Some(&first), at(100_000)).unwrap();
        assert_eq!(again.time, Time(at(100_000)));
    }

    #[test]
    fn a_text_that_is_cut_stops_nothing() {
        let long = "slots 0-9 ".repeat(1000);
        let plan = recreated(&[&long, "slots 20-29"]);
        let named = unnamed(&plan, true, None, at(10)).unwrap();
        assert!(named.message.len() < long.len());
        assert_eq!(unnamed(&plan, true, Some(&named), at(11)), None);
    }
}
