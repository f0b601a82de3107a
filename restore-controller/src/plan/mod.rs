//! The next step of a restore. Pure: everything that is known goes in, one step with its reason comes out.
//!
//! What is stored in the status and read here are facts that cannot be seen again: which manifest was proven, who holds
//! which unit, up to which block it is written. The phase is not among them.

mod observed;
mod source;
mod step;
mod target;
mod units;

#[cfg(test)]
mod tests;

pub use observed::{Examined, NotSettled, Observed, Question, TargetState, Verified};
pub use source::{ManifestName, Origin, origin};
pub use step::{Failure, Freed, Step};
pub use target::{ANNOTATION_RESTORE_UID, target_name};
pub use units::{is_claimed, is_loaded, pause_after};

use common::kubernetes::conditions::holds;
use crds::{RedisRestore, RedisRestoreStatus};
use std::time::Duration;

/// How long a restore waits for the same thing before it has failed: a new cluster may have to pull an image and bind
/// volumes.
pub const PATIENCE: Duration = Duration::from_mins(30);
/// When to look again at the latest while something is waited for or under way.
pub const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The next step of `restore`.
pub fn plan(restore: &RedisRestore, seen: &Observed) -> Step {
    let status = restore.status.clone().unwrap_or_default();
    if restore.metadata.deletion_timestamp.is_some() || is_finished(&status) {
        return Step::Rest;
    }
    let step = if status.units.is_empty() {
        source::prepare(restore, &status, seen)
    } else {
        units::carry_on(restore, &status, seen)
    };
    impatient(step, seen)
}

/// Whether the restore has succeeded or failed.
pub fn is_finished(status: &RedisRestoreStatus) -> bool {
    holds(&status.conditions, "Complete") || holds(&status.conditions, "Failed")
}

/// Waiting is bounded, but for what another object is seen to work on.
fn impatient(step: Step, seen: &Observed) -> Step {
    let Step::Wait { reason, message } = &step else {
        return step;
    };
    let others_work = matches!(*reason, "BackupNotComplete" | "OperationUnderWay");
    let waited = seen.waiting_for.filter(|(known, _)| known == reason);
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
