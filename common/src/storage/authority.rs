//! The certificate authority of a store that no public authority has signed.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Certificates in PEM form, each of which can be a trust anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateAuthority {
    pem: Vec<u8>,
}

/// Why bytes are no certificate authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// It holds no certificate.
    #[error("it holds no certificate; write one or more blocks of -----BEGIN CERTIFICATE-----")]
    Empty,
    /// One of the certificates cannot be read.
    #[error("certificate {number} cannot be read: {reason}")]
    Certificate {
        /// Number in the file, from 1.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
}

impl CertificateAuthority {
    /// Reads certificates; what else the text holds is ignored, as in other tools.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
            let unreadable = |reason| AuthorityError::Certificate { number, reason };
            let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unreadable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(AuthorityError::Empty);
        }
        Ok(Self { pem: pem.to_vec() })
    }

    pub(super) fn pem(&self) -> &[u8] {
        &self.pem
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_no_certificate_is_refused() {
        assert_eq!(
            CertificateAuthority::from_pem(b"ca.example.com"),
            Err(AuthorityError::Empty)
        );
        let cut = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let error = CertificateAuthority::from_pem(cut).unwrap_err();
        assert!(
            matches!(error, AuthorityError::Certificate { number: 1, .. }),
            "{error}"
        );
    }
}
