//! Whether what a controller and a node send each other is encrypted, and how each proves who it is.
//!
//! A server is recognized by its very certificate: only those that the Secret of its cluster holds are accepted. An authority may have signed
//! certificates of servers that are not this cluster's, and one that has expired has to be replaced over a connection too: so neither
//! authorities nor dates are looked at here. They are when a certificate is given to the servers.

use crds::{
    CLIENT_PORT, KEY_PRESENTED, PORT_CLIENT, PORT_TLS, TLS_PORT, certificate_file, key_file,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
        verify_tls13_signature,
    },
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// How bytes travel between a controller and the nodes of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// As they are.
    #[default]
    Plain,
    /// Encrypted.
    Tls(TlsAccess),
}

impl Transport {
    /// Where the pods of a cluster listen for this.
    pub fn port(&self) -> u16 {
        match self {
            Self::Plain => CLIENT_PORT,
            Self::Tls(_) => TLS_PORT,
        }
    }

    /// The name of that port in pods.
    pub fn port_name(&self) -> &'static str {
        match self {
            Self::Plain => PORT_CLIENT,
            Self::Tls(_) => PORT_TLS,
        }
    }
}

/// The certificate that is shown to the nodes of a cluster, and those that they may show. Cheap to clone.
#[derive(Clone)]
pub struct TlsAccess {
    config: Arc<ClientConfig>,
    /// What it was made of: the certificate that is shown, then the others.
    certificates: Arc<[CertificateDer<'static>]>,
}

/// Why the certificates of a cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The Secret lacks a file.
    #[error("it has no {0}")]
    Missing(String),
    /// A file is not what its name says.
    #[error("{file} cannot be read: {source}")]
    Pem {
        /// Key in the Secret's data.
        file: String,
        /// What is wrong.
        source: pem::Error,
    },
    /// The key cannot be used.
    #[error("certificate and key cannot be used: {0}")]
    Unusable(#[from] Error),
}

impl TlsAccess {
    /// Shows the certificate of these files that is [`KEY_PRESENTED`], and accepts every one of them. The files are those of the Secret that
    /// the pods of a cluster mount.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, TlsError> {
        let file = |name: &str| {
            let found = files.get(name).map(Vec::as_slice);
            found.ok_or_else(|| TlsError::Missing(name.to_owned()))
        };
        let unreadable = |file: &str| {
            let file = file.to_owned();
            move |source| TlsError::Pem { file, source }
        };
        let presented = String::from_utf8_lossy(file(KEY_PRESENTED)?).into_owned();
        let name = key_file(&presented);
        let key = PrivateKeyDer::from_pem_slice(file(&name)?).map_err(unreadable(&name))?;
        let name = certificate_file(&presented);
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file(&name)?).collect();
        let chain = chain.map_err(unreadable(&name))?;
        let mut accepted = Vec::new();
        for (name, pem) in files {
            if name.ends_with(&certificate_file("")) {
                let leaf = CertificateDer::from_pem_slice(pem).map_err(unreadable(name))?;
                accepted.push(leaf);
            }
        }
        Self::new(chain, key, accepted)
    }

    /// Shows this chain, and accepts servers that show one of these certificates.
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        accepted: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let certificates = chain.first().into_iter().chain(&accepted).cloned();
        let certificates = certificates.collect();
        let pinned = Pinned {
            accepted,
            algorithms: provider.signature_verification_algorithms,
        };
        let mut config =
            ClientConfig::builder_with_provider(Arc::<CryptoProvider>::clone(&provider))
                .with_safe_default_protocol_versions()?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(pinned))
                .with_client_auth_cert(chain, key)?;
        // A resumed session skips the certificate.
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            certificates,
        })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

impl PartialEq for TlsAccess {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for TlsAccess {}

impl fmt::Debug for TlsAccess {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("TlsAccess")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

/// Accepts these certificates, and the proof that the server has the key of the one it shows.
#[derive(Debug)]
struct Pinned {
    accepted: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.accepted.iter().any(|one| one == shown) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(Error::General(
            "the certificate of the server is not in the Secret of its cluster".to_owned(),
        ))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, shown, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, shown, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
