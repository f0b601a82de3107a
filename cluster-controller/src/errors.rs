//! What ends a pass early.

use common::kubernetes::{
    call::ApiError,
    errors::{Classified, ErrorClass},
    leases::NotLeader,
};

/// Why a pass was given up. A node that does not answer is no error but an observation.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
}

impl Classified for ReconcileError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
        }
    }
}
