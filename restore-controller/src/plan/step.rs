//! The steps of a restore.

use super::observed::{Examined, Question, Verified};
use crds::RestoreUnit;
use std::sync::Arc;

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find something out, then plan again.
    Ask(Question),
    /// Begin to read manifest and indexes, or go on with it.
    Examine,
    /// Record which backup is meant.
    Accept(Arc<Examined>),
    /// Create the target.
    CreateCluster,
    /// Hand out the source objects: from here on keys are written.
    List {
        /// One unit for each object.
        units: Vec<RestoreUnit>,
        /// What the target runs.
        server: String,
        /// Keys of the backup, if they were counted.
        keys: Option<u64>,
    },
    /// Give these units to another attempt.
    Free(Vec<Freed>),
    /// Begin to count, or go on with it.
    Verify,
    /// Every key is written and what can be verified has been.
    Succeed(Verified),
    /// The restore has failed.
    Fail(Failure),
    /// Something outside has to happen first.
    Wait {
        /// CamelCase.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// The replicas are at work.
    Watch,
    /// Nothing is left to do.
    Rest,
}

/// Why a restore has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The condition that does not hold.
    pub condition: &'static str,
    /// CamelCase.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// What was counted, if that is why.
    pub verified: Option<Verified>,
}

/// A unit that gets another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Position in the status.
    pub position: usize,
    /// Who held it.
    pub worker: String,
    /// The attempt that is lost.
    pub attempt: i32,
    /// Why.
    pub error: String,
}
