//! The next step of a restore. Pure: everything that is known goes in, one step with its reason comes out.
//!
//! The status stores facts that cannot be observed again: which manifest was verified, which replica holds which unit, up to
//! which block it is written. The phase is not among them.

mod attempts;
mod observed;
mod source;
mod step;
mod target;

#[cfg(test)]
mod tests;

pub use attempts::is_loaded;
pub use observed::{Examined, Observed, Question, TargetState, Verified};
pub use source::{ManifestName, Origin, origin};
pub use step::{Failure, Step};
pub use target::target_name;

use common::kubernetes::conditions::holds;
use crds::{RedisRestore, RedisRestoreStatus};
use std::time::Duration;

/// How long a restore waits for the same thing before it has failed: a new cluster may have to pull an image and bind
/// volumes.
pub const PATIENCE: Duration = Duration::from_mins(30);

/// The next step of `restore`.
pub fn plan(restore: &RedisRestore, seen: &Observed) -> Step {
    let status = restore.status.clone().unwrap_or_default();
    if restore.metadata.deletion_timestamp.is_some() || is_finished(&status) {
        return Step::Done;
    }
    let step = if status.units.is_empty() {
        source::prepare(restore, &status, seen)
    } else {
        attempts::replay(restore, &status, seen)
    };
    bounded(step, seen)
}

/// Whether the restore has succeeded or failed.
pub fn is_finished(status: &RedisRestoreStatus) -> bool {
    holds(&status.conditions, "Complete") || holds(&status.conditions, "Failed")
}

/// Waiting is bounded, except for what another object is seen to work on.
fn bounded(step: Step, seen: &Observed) -> Step {
    let Step::Wait { reason, message } = &step else {
        return step;
    };
    let others_work = matches!(*reason, "BackupNotComplete" | "OperationUnderWay");
    let waited = seen.waiting.filter(|(known, _)| known == reason);
    if others_work || waited.is_none_or(|(_, time)| time < PATIENCE) {
        return step;
    }
    Step::Fail(Failure {
        condition: "Complete",
        reason,
        message: format!(
            "gave up after {} minutes: {message}",
            PATIENCE.as_secs() / 60
        ),
        verified: None,
    })
}
