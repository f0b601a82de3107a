//! Why the certificates of a cluster cannot be read or written.

use super::material::MaterialError;
use crate::secrets::SecretError;
use common::{
    cluster::transport::TlsError,
    kubernetes::errors::{Classified, ErrorClass},
};

/// Why the certificates of a cluster cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// A Secret.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// There is nothing yet that servers could use.
    #[error("spec.tls: Secret {secret}: {source}")]
    Refused {
        /// Name of the Secret.
        secret: String,
        /// What is wrong with it.
        source: MaterialError,
    },
    /// What servers use is not known any more.
    #[error(
        "Secret {secret} is gone, and pods start with it: give spec.tls again, and its certificates are made of that"
    )]
    Lost {
        /// Name of the Secret.
        secret: String,
    },
    /// What servers use cannot be used here.
    #[error("Secret {secret}: {source}; delete it, and it is made again")]
    Unusable {
        /// Name of the Secret.
        secret: String,
        /// What is wrong with it.
        source: TlsError,
    },
}

impl Classified for CertificatesError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Secret(error) => error.class(),
            Self::Refused { .. } | Self::Lost { .. } | Self::Unusable { .. } => {
                ErrorClass::InvalidSpec
            }
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Secret(error) => error.reason(),
            Self::Refused { source, .. } => source.reason(),
            Self::Lost { .. } => "CertificatesLost",
            Self::Unusable { .. } => "CertificatesUnusable",
        }
    }
}
