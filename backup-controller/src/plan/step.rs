//! The steps of a backup.

use super::observed::{Awaited, Published, Question};
use common::kubernetes::background::Trouble;
use crds::{BackupShard, S3Location};

/// The next step.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Find something out, then plan again.
    Ask(Question),
    /// Set the finalizer that guards the artifacts.
    AddFinalizer,
    /// Take the finalizer off.
    RemoveFinalizer,
    /// Begin to delete the artifacts, or go on with it.
    DeleteArtifacts,
    /// The artifacts cannot be deleted: say so and let the object go.
    Abandon(Trouble),
    /// Begin to look whether the storage takes what will be written, or go on with it.
    Probe(Box<S3Location>),
    /// Record which storage is meant.
    Accept(Box<S3Location>),
    /// Hand out the shards. `again`: the slot map has changed, the work starts anew.
    List {
        /// One unit for each shard.
        units: Vec<BackupShard>,
        /// Hash of the slot map.
        topology_hash: String,
    },
    /// Give these units to another attempt.
    Free(Vec<Freed>),
    /// The slot map after the last fork is cut like the one before the first.
    ConfirmSlots,
    /// Begin to write the manifest, or go on with it.
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
        /// What the patience is measured by.
        on: Awaited,
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

/// A unit that gets another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freed {
    /// Position in the status.
    pub position: usize,
    /// Who held it.
    pub worker: String,
    /// The attempt that is lost.
    pub attempt: i32,
    /// Key of the object that the lost attempt was writing.
    pub key: Option<String>,
    /// Why.
    pub error: String,
}
