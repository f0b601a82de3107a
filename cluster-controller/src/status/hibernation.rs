//! What the status says of a cluster that hibernates, and of one that is resumed.

use super::{StatusInputs, conditions};
use common::{kubernetes::conditions::ConditionUpdate, sentence::names};

/// Phase and reason once no pod is left.
pub const HIBERNATED: &str = "Hibernated";
/// Phase and reason while pods go.
pub const HIBERNATING: &str = "Hibernating";
/// Phase from then on until every slot is served.
const RESUMING: &str = "Resuming";

/// The phase of a cluster that hibernates, or has not been served since.
pub(super) fn phase(
    old: Option<&str>,
    found: &StatusInputs<'_>,
    served: bool,
) -> Option<&'static str> {
    if found.shape.hibernate {
        return Some(word(found));
    }
    let was_asleep = matches!(old, Some(HIBERNATED | HIBERNATING | RESUMING));
    (was_asleep && !served).then_some(RESUMING)
}

fn word(found: &StatusInputs<'_>) -> &'static str {
    if found.observed.pods.is_empty() {
        HIBERNATED
    } else {
        HIBERNATING
    }
}

/// What the cluster does, and what can be done.
pub(super) fn sentence(found: &StatusInputs<'_>) -> String {
    let mut pods: Vec<&str> = found.observed.pods.keys().map(String::as_str).collect();
    if pods.is_empty() {
        return "no pods, the volumes stay; start them: set spec.hibernate to false".to_owned();
    }
    pods.sort_unstable();
    format!(
        "{}: waiting until it has stopped; the volumes stay",
        names("pod", &pods)
    )
}

/// The conditions in which it differs from other clusters; none where it does not hibernate.
pub(super) fn replace(all: &mut [ConditionUpdate], found: &StatusInputs<'_>) {
    if !found.shape.hibernate {
        return;
    }
    let (word, sentence) = (word(found), sentence(found));
    let is_stopping = !found.observed.pods.is_empty();
    let wrong = found.failure;
    let no_server = "no server is to run: spec.hibernate is true";
    let ready = match wrong.filter(|failure| !failure.transient) {
        Some(refused) => ConditionUpdate::no("Ready", refused.reason, &refused.message),
        None => ConditionUpdate::no("Ready", word, &sentence),
    };
    let progressing = match wrong {
        Some(failure) => ConditionUpdate::new(
            "Progressing",
            Some(failure.transient),
            failure.reason,
            &failure.message,
        ),
        None => ConditionUpdate::new("Progressing", Some(is_stopping), word, &sentence),
    };
    let mut new = vec![
        conditions::reconciling(&progressing),
        conditions::stalled(&ready, &progressing),
        ready,
        progressing,
        ConditionUpdate::no("Available", word, &sentence),
    ];
    new.extend(
        ["SlotsCovered", "ReplicationHealthy", "QuorumHealthy"]
            .map(|kind| ConditionUpdate::unknown(kind, word, no_server)),
    );
    for condition in all {
        if let Some(index) = new.iter().position(|one| one.kind == condition.kind) {
            *condition = new.swap_remove(index);
        }
    }
}
