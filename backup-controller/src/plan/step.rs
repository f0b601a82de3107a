//! The steps of a backup.

use super::observed::{Awaited, Published, Question};
use common::claims::{attempts::LostUnit, jobs::JobFailure, memory::Waiting};
use crds::{BackupShard, S3Location};

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find something out, then plan again.
    Ask(Question),
    /// Set the finalizer that protects the artifacts.
    AddFinalizer,
    /// Remove the finalizer.
    RemoveFinalizer,
    /// Start to delete the artifacts, or continue.
    DeleteArtifacts,
    /// The artifacts cannot be deleted: report it and remove the finalizer.
    Abandon(JobFailure),
    /// Start to check whether the storage takes what will be written, or continue.
    Probe(Box<S3Location>),
    /// Record which storage is meant.
    Accept(Box<S3Location>),
    /// Distribute the shards, for the first time or because the slots have moved between shards.
    List {
        /// One unit for each shard.
        units: Vec<BackupShard>,
        /// Hash of the slot map.
        topology_hash: String,
    },
    /// Give these units to another attempt.
    Free(Vec<LostUnit>),
    /// The slots belong to the shards in the same way after the last fork as before the first.
    ConfirmSlots,
    /// Start to write the manifest, or continue.
    Publish,
    /// The backup is complete.
    Succeed(Published),
    /// The backup has failed.
    Fail {
        /// CamelCase.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// Something outside has to happen first.
    Wait {
        /// Which clock runs.
        on: Awaited,
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

    /// What it means for the clock of what is waited for. Another reason for the same wait does not reset it.
    pub fn waiting(&self) -> Waiting<Awaited> {
        match self {
            Self::Wait { on, .. } => Waiting::On(*on),
            Self::Publish | Self::DeleteArtifacts | Self::Probe(_) | Self::Ask(_) => {
                Waiting::Continues
            }
            Self::AddFinalizer
            | Self::RemoveFinalizer
            | Self::Abandon(_)
            | Self::Accept(_)
            | Self::List { .. }
            | Self::Free(_)
            | Self::ConfirmSlots
            | Self::Succeed(_)
            | Self::Fail { .. }
            | Self::Watch
            | Self::Done => Waiting::Ends,
        }
    }
}
