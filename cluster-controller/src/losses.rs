//! Keys that were given up and that the status does not name yet: memory that may be lost.
//!
//! A status that cannot be written, since the object has changed or the API server does not answer, is computed again by the next reconcile,
//! which finds the slots served and has given nothing up.

use crate::redis::execute::Done;
use common::{cluster::node::NodeError, sentence::shortened};
use crds::LossStatus;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Losses by cluster.
#[derive(Debug, Default)]
pub struct LossTracker {
    unwritten: Mutex<HashMap<(String, String), LossStatus>>,
}

impl LossTracker {
    /// What the status is to name: a loss that `written` does not name yet, with what was given up `now`.
    pub fn to_write(
        &self,
        (namespace, name): (&str, &str),
        new: Option<LossStatus>,
        written: Option<&LossStatus>,
    ) -> Option<LossStatus> {
        let mut unwritten = self
            .unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let place = (namespace.to_owned(), name.to_owned());
        let before = unwritten
            .get(&place)
            .filter(|before| !names(written, before));
        let loss = match (before.cloned(), new) {
            (Some(before), Some(new)) => Some(LossStatus {
                message: shortened(&format!("{}; {}", before.message, new.message)),
                ..new
            }),
            (before, new) => new.or(before),
        };
        match &loss {
            Some(loss) => unwritten.insert(place, loss.clone()),
            None => unwritten.remove(&place),
        };
        loss
    }

    /// The cluster is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        let mut unwritten = self
            .unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unwritten.remove(&(namespace.to_owned(), name.to_owned()));
    }
}

/// Whether the status names this loss: it has only the seconds of a time.
fn names(written: Option<&LossStatus>, loss: &LossStatus) -> bool {
    written.is_some_and(|written| {
        written.message == loss.message && written.time.0.as_second() == loss.time.0.as_second()
    })
}

/// What these steps gave up. One without an answer counts: the server may have done it.
pub fn loss(formed: bool, done: &[Done], now: Timestamp) -> Option<LossStatus> {
    let reasons: Vec<&str> = done
        .iter()
        .filter(|one| one.step.action.gives_keys_up(formed) && may_be_done(one))
        .map(|one| one.step.reason.as_str())
        .collect();
    (!reasons.is_empty()).then(|| LossStatus {
        time: Time(now),
        message: shortened(&reasons.join("; ")),
    })
}

fn may_be_done(one: &Done) -> bool {
    matches!(
        one.result,
        Ok(()) | Err(NodeError::Lost { .. } | NodeError::Malformed { .. })
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::plan::{Action, Assignment, Step};
    use std::net::{Ipv4Addr, SocketAddr};

    const PLACE: (&str, &str) = ("team", "shop");

    fn step(how: Assignment, result: Result<(), NodeError>) -> [Done; 1] {
        let ranges = Vec::new();
        let action = Action::AssignSlots {
            member: 0,
            ranges,
            how,
        };
        let reason = "slots 0-9 are served empty".to_owned();
        [Done {
            step: Step { action, reason },
            result,
        }]
    }

    fn recreated(result: Result<(), NodeError>) -> [Done; 1] {
        let listed = Vec::new();
        step(Assignment::Recreated { listed }, result)
    }

    fn at(milliseconds: i64) -> Timestamp {
        Timestamp::from_millisecond(milliseconds).unwrap()
    }

    #[test]
    fn slots_served_empty_are_a_loss() {
        let lost = loss(true, &recreated(Ok(())), at(10)).unwrap();
        assert_eq!(lost.message, "slots 0-9 are served empty");
        let first = step(Assignment::Joined, Ok(()));
        assert_eq!(loss(false, &first, at(10)), None, "its first slots");
        assert!(loss(true, &first, at(10)).is_some());
    }

    #[test]
    fn a_step_without_an_answer_may_be_a_loss() {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 6379));
        let command = "CLUSTER ADDSLOTS";
        let source = || redis::RedisError::from((redis::ErrorKind::Io, "no answer"));
        let lost = NodeError::Lost {
            address,
            command,
            source: source(),
        };
        assert!(loss(true, &recreated(Err(lost)), at(10)).is_some());
        let refused = NodeError::Refused {
            address,
            command,
            source: source(),
        };
        assert_eq!(loss(true, &recreated(Err(refused)), at(10)), None);
    }

    /// The status could not be written after the first loss; then another one follows; then both are written.
    #[test]
    fn a_loss_is_kept_until_the_status_names_it() {
        let tracker = LossTracker::default();
        let one = |milliseconds, message: &str| LossStatus {
            time: Time(at(milliseconds)),
            message: message.to_owned(),
        };
        let old = one(1_000, "of last week");
        let first = one(9_300, "a");
        let asked = |new, written| tracker.to_write(PLACE, new, written);
        assert_eq!(asked(None, Some(&old)), None);
        assert_eq!(asked(Some(first.clone()), Some(&old)), Some(first.clone()));
        assert_eq!(asked(None, Some(&old)), Some(first));
        let both = one(9_700, "a; b");
        assert_eq!(asked(Some(one(9_700, "b")), Some(&old)), Some(both));
        let written = one(9_000, "a; b");
        assert_eq!(asked(None, Some(&written)), None);
        assert_eq!(asked(None, Some(&old)), None, "it is forgotten");
    }
}
