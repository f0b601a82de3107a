//! Why an object of a backup was not loaded.

use crate::{replay::ReplayError, source::SourceError};
use common::{
    access::AccessError,
    errors::{Classified, ErrorClass},
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
    /// Whether another attempt would fail in the same way.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Status(_) => true,
            Self::Api(_) | Self::Access(_) | Self::Cancelled => false,
            Self::Source(error) => error.is_lasting(),
            Self::Replay(error) => error.is_lasting(),
        }
    }
}

impl Classified for UnitReplayError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Status(_) => ErrorClass::Bug,
            Self::Api(error) => error.class(),
            Self::Access(error) if error.is_transient() => ErrorClass::Transient,
            Self::Replay(error) if error.is_transient() => ErrorClass::Transient,
            Self::Source(error) if error.is_transient() => ErrorClass::Transient,
            Self::Access(_) | Self::Source(_) | Self::Replay(_) => ErrorClass::InvalidSpec,
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
