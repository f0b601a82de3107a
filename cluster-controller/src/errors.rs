//! What goes wrong in a reconcile.

use crate::{
    certificates::error::CertificatesError, settings::trial::TrialError, upgrade::UpgradeRefusal,
    users::error::UsersError, validate::InvalidSpec,
};
use common::kubernetes::{
    call::ApiError,
    errors::{Classified, ErrorClass},
    leases::NotLeader,
};

/// Why a reconcile could not do everything. A node that does not answer is no error but an observation.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// Another replica leads.
    #[error(transparent)]
    NotLeader(#[from] NotLeader),
    /// The definition of RedisClusters is older than the controller.
    #[error(
        "RedisCluster: the API server does not store status.nodes or status.lastLoss; apply the CustomResourceDefinitions of this version of the controller"
    )]
    OldDefinition,
    /// The user has to change something.
    #[error(transparent)]
    Invalid(#[from] InvalidSpec),
    /// The servers that run cannot change to what the spec names.
    #[error(transparent)]
    Upgrade(#[from] UpgradeRefusal),
    /// A server does not start with the wanted configuration.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// The users cannot be read or written.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The certificates cannot be read or written.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
}

impl Classified for ReconcileError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Api(error) => error.class(),
            Self::NotLeader(error) => error.class(),
            Self::Trial(error) => error.class(),
            Self::Users(error) => error.class(),
            Self::Certificates(error) => error.class(),
            Self::OldDefinition | Self::Invalid(_) | Self::Upgrade(_) => ErrorClass::InvalidSpec,
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Api(error) => error.reason(),
            Self::NotLeader(error) => error.reason(),
            Self::OldDefinition => "OldDefinition",
            Self::Invalid(error) => error.reason(),
            Self::Upgrade(refusal) => refusal.reason(),
            Self::Trial(error) => error.reason(),
            Self::Users(error) => error.reason(),
            Self::Certificates(error) => error.reason(),
        }
    }
}

/// Why the spec, or a part of it, is not acted upon: for the status. The nodes are repaired all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// CamelCase.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// Whether it probably ends without a change of the spec.
    pub transient: bool,
}

impl Failure {
    /// What an error means for the user.
    pub fn of(error: &impl Classified) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
            transient: match error.class() {
                ErrorClass::Transient | ErrorClass::Conflict | ErrorClass::Fenced => true,
                ErrorClass::InvalidSpec | ErrorClass::Forbidden | ErrorClass::Bug => false,
            },
        }
    }
}
