//! The steps of a restore.

use super::observed::{Examined, Question, Verified};
use common::claims::{attempts::LostUnit, memory::Waiting};
use crds::RestoreUnit;
use std::sync::Arc;

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find something out, then plan again.
    Ask(Question),
    /// Start to read manifest and indexes, or continue.
    Examine,
    /// Record which backup is meant.
    Accept(Arc<Examined>),
    /// Create the target.
    CreateCluster,
    /// Distribute the source objects: from here on keys are written.
    List {
        /// One unit for each object.
        units: Vec<RestoreUnit>,
        /// What the target runs.
        server: String,
        /// Keys of the backup, if they were counted.
        keys: Option<u64>,
    },
    /// Give these units to another attempt.
    Free(Vec<LostUnit>),
    /// Start to count, or continue.
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
    Done,
}

impl Step {
    /// What it asks for, if it is a question.
    pub fn question(&self) -> Option<Question> {
        if let Self::Ask(question) = self {
            return Some(*question);
        }
        None
    }

    /// What it means for the clock of what is waited for. Another reason resets it.
    pub fn waiting(&self) -> Waiting<&'static str> {
        match self {
            Self::Wait { reason, .. } => Waiting::On(reason),
            Self::Ask(_) | Self::Examine | Self::Verify => Waiting::Continues,
            Self::Accept(_)
            | Self::CreateCluster
            | Self::List { .. }
            | Self::Free(_)
            | Self::Succeed(_)
            | Self::Fail(_)
            | Self::Watch
            | Self::Done => Waiting::Ends,
        }
    }
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
