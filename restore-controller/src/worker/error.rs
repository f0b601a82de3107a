//! Why an object of a backup was not loaded.

use crate::{replay::ReplayError, source::SourceError};
use common::{
    access::AccessError,
    errors::{Classified, ErrorClass, Recovery},
    kubernetes::call::ApiError,
};

/// Why an object of a backup was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum UnitReplayError {
    /// A field of the status is missing or malformed.
    #[error("the status of the restore is not as the controller wrote it: {0}")]
    Status(&'static str),
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The bucket cannot be opened.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The backup cannot be read, or is not what was accepted.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The replay itself.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The unit was stopped or lost.
    #[error("it was stopped")]
    Cancelled,
}

impl UnitReplayError {
    /// Whether another attempt may succeed.
    pub(super) fn recovery(&self) -> Recovery {
        match self {
            Self::Status(_) => Recovery::Never,
            Self::Api(_) | Self::Cancelled => Recovery::Soon,
            Self::Access(error) => error.recovery(),
            Self::Source(error) => error.recovery(),
            Self::Replay(error) => error.recovery(),
        }
    }
}

impl Classified for UnitReplayError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Status(_) => ErrorClass::Bug,
            Self::Api(error) => error.class(),
            Self::Access(_) | Self::Source(_) | Self::Replay(_) => match self.recovery() {
                Recovery::Soon => ErrorClass::Transient,
                Recovery::Later | Recovery::Never => ErrorClass::InvalidSpec,
            },
            Self::Cancelled => ErrorClass::Fenced,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Status(_) => "StatusMalformed",
            Self::Api(error) => error.reason(),
            Self::Access(error) => error.reason(),
            Self::Source(error) => error.reason(),
            Self::Replay(error) => error.reason(),
            Self::Cancelled => "Cancelled",
        }
    }
}
