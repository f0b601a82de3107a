//! The steps that verify the backup, before anything is done to the target.

use super::{
    observed::{Observed, Question},
    step::{Failure, Step},
    target,
};
use common::kubernetes::conditions::{find, holds};
use crds::{RedisBackup, RedisRestore, RedisRestoreStatus, S3Location};

/// Where the manifest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Where the manifest is.
    pub storage: S3Location,
    /// What names the manifest below the location's prefix, or its whole key.
    pub manifest: ManifestName,
    /// The SHA-256 it must have, if one is recorded.
    pub sha256: Option<String>,
}

/// How the manifest is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestName {
    /// The whole key.
    Key(String),
    /// The path of its folder below the location's prefix.
    Path(String),
}

pub(super) fn prepare(
    restore: &RedisRestore,
    status: &RedisRestoreStatus,
    seen: &Observed,
) -> Step {
    // A named backup has to be complete first, a location needs none. Once the source is accepted, the backup may be deleted.
    if status.manifest_sha256.is_none() && restore.spec.source.backup_ref.is_some() {
        let Some(backup) = &seen.backup else {
            return Step::Ask(Question::Backup);
        };
        if let Err(step) = complete(restore, backup.as_deref()) {
            return step;
        }
    }
    let examined = match &seen.source {
        None => return Step::Examine,
        Some(Err(failure)) if failure.transient => {
            return Step::Wait {
                reason: failure.reason,
                message: failure.message.clone(),
            };
        }
        Some(Err(failure)) => {
            return Step::Fail(refused(failure.reason, failure.message.clone()));
        }
        Some(Ok(examined)) => examined,
    };
    if status.manifest_sha256.is_none() {
        return Step::Accept(examined.clone());
    }
    target::prepare(restore, examined, seen)
}

/// Whether the backup is complete.
fn complete(restore: &RedisRestore, backup: Option<&RedisBackup>) -> Result<(), Step> {
    let name = backup_name(restore);
    let Some(backup) = backup else {
        return Err(Step::Wait {
            reason: "BackupNotFound",
            message: format!("there is no RedisBackup {name} in this namespace: waiting for it"),
        });
    };
    let status = backup.status.clone().unwrap_or_default();
    if holds(&status.conditions, "Failed") {
        let reported = find(&status.conditions, "Failed").map_or("", |c| c.message.as_str());
        return Err(Step::Fail(refused(
            "BackupFailed",
            format!("RedisBackup {name} has failed ({reported}): restore another one"),
        )));
    }
    if backup.metadata.deletion_timestamp.is_some() {
        return Err(Step::Fail(refused(
            "BackupDeleted",
            format!("RedisBackup {name} is being deleted: restore another one"),
        )));
    }
    if holds(&status.conditions, "Complete") && status.manifest_key.is_some() {
        return Ok(());
    }
    Err(Step::Wait {
        reason: "BackupNotComplete",
        message: format!("waiting until RedisBackup {name} is complete"),
    })
}

/// Where the manifest is: as it was accepted, or as the spec names it. `None` while a backup does not name it yet.
pub fn origin(restore: &RedisRestore, backup: Option<&RedisBackup>) -> Option<Origin> {
    let accepted = restore.status.clone().unwrap_or_default();
    if let (Some(storage), Some(key), Some(sha256)) = (
        accepted.storage,
        accepted.manifest_key,
        accepted.manifest_sha256,
    ) {
        return Some(Origin {
            storage,
            manifest: ManifestName::Key(key),
            sha256: Some(sha256),
        });
    }
    if let Some(location) = &restore.spec.source.location {
        return Some(Origin {
            storage: location.s3.clone(),
            manifest: ManifestName::Path(location.path.clone()),
            sha256: None,
        });
    }
    let status = backup?.status.clone()?;
    Some(Origin {
        storage: status.storage?,
        manifest: ManifestName::Key(status.manifest_key?),
        sha256: status.manifest_sha256,
    })
}

fn backup_name(restore: &RedisRestore) -> &str {
    let reference = restore.spec.source.backup_ref.as_ref();
    reference.map_or("", |reference| reference.name.as_str())
}

fn refused(reason: &'static str, message: String) -> Failure {
    Failure {
        condition: "SourceValid",
        reason,
        message,
        verified: None,
    }
}
