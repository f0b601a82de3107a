//! Why a shard was not stored.

use crate::capture::CaptureError;
use common::{
    access::AccessError,
    errors::{Classified, ErrorClass, Recovery},
    kubernetes::call::ApiError,
    storage::layout::BadBackupId,
};

/// Why a shard was not stored.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// A field of the status is missing or malformed.
    #[error("the status of the backup is not as the controller wrote it: {0}")]
    Status(&'static str),
    /// The identity of the backup.
    #[error(transparent)]
    BackupId(#[from] BadBackupId),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The bucket cannot be opened.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The capture itself.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

impl ShardError {
    /// Whether the capture ended because it was cancelled.
    pub(super) fn is_cancelled(&self) -> bool {
        matches!(self, Self::Capture(CaptureError::Cancelled))
    }
}

fn of(recovery: Recovery) -> ErrorClass {
    match recovery {
        Recovery::Soon => ErrorClass::Transient,
        Recovery::Later | Recovery::Never => ErrorClass::InvalidSpec,
    }
}

impl Classified for ShardError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Status(_) | Self::BackupId(_) | Self::Capture(CaptureError::Index(_)) => {
                ErrorClass::Bug
            }
            Self::Api(error) => error.class(),
            Self::Capture(CaptureError::Cancelled) => ErrorClass::Fenced,
            Self::Access(error) => of(error.recovery()),
            Self::Capture(error) => of(error.recovery()),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Status(_) | Self::BackupId(_) => "StatusMalformed",
            Self::Api(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Capture(error) => error.reason(),
        }
    }
}
