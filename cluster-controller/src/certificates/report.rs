//! How far the servers of a cluster have their certificate, for the status.

use crds::{Encryption, TlsStatus};

/// How far the servers have their certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificatesReport {
    /// What servers show. None: they do not encrypt.
    pub shown: Option<TlsStatus>,
    /// Why what the Secret of the spec holds is not used: reason and words.
    pub refused: Option<(&'static str, String)>,
    /// Pods whose servers do not show it yet.
    pub lacking: Vec<String>,
    /// How far they are to encrypt in the end.
    pub goal: Encryption,
    /// Whether the next step waits for an operation.
    pub is_held: bool,
    /// Whether something was changed just now.
    pub changed: bool,
}
