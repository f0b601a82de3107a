//! What a Secret as cert-manager makes it holds: a certificate, its key, and the authorities that are trusted. Checked before a server gets
//! any of it. Pure.

use common::hexadecimal::hexadecimal;
use k8s_openapi::{ByteString, jiff::Timestamp};
use rustls::{
    CertificateError, Error, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject},
    server::{ParsedCertificate, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Files of such a Secret.
pub const CERTIFICATE: &str = "tls.crt";
/// File with the private key that fits it.
pub const KEY: &str = "tls.key";
/// File with the authorities that are trusted.
pub const AUTHORITIES: &str = "ca.crt";
/// Hexadecimal digits of the hash in the name of a file: 40 bits.
const DIGITS: usize = 10;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A certificate that fits its key and is trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Names it.
    pub digits: String,
    /// It and those that lead to its authority, in PEM form.
    pub chain: Vec<u8>,
    /// Its key, in PEM form.
    pub key: Vec<u8>,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Certificate")
            .field("digits", &self.digits)
            .finish_non_exhaustive()
    }
}

/// Serial number and end, for the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Serial number, in hexadecimal digits.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: Timestamp,
}

/// Certificates that are trusted, in PEM form, by what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorities(BTreeMap<Vec<u8>, Vec<u8>>);

/// What servers are to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// What they show.
    pub certificate: Certificate,
    /// Whom they trust.
    pub authorities: Authorities,
}

/// Why files are not used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MaterialError {
    /// There is no such Secret.
    #[error("it does not exist in this namespace: create it with tls.crt, tls.key and ca.crt")]
    NoSecret,
    /// The API server does not give it.
    #[error("it cannot be read: {0}")]
    NotRead(String),
    /// A file is missing.
    #[error("it has no {0}: add it")]
    Missing(&'static str),
    /// A file is no PEM.
    #[error("{file} cannot be read: {why}")]
    Unreadable {
        /// Key in the data of the Secret.
        file: &'static str,
        /// Words of the parser.
        why: String,
    },
    /// The key is another one's.
    #[error("tls.key is not the key of tls.crt")]
    OtherKey,
    /// Its time is over.
    #[error("tls.crt, or what has signed it, has expired: it was valid until {0}")]
    Expired(Timestamp),
    /// Its time has not begun.
    #[error("tls.crt is not valid yet")]
    NotYetValid,
    /// Another authority's.
    #[error("tls.crt was signed by none of the authorities in ca.crt")]
    NotTrusted,
    /// The chain does not end at an authority that has signed itself.
    #[error("ca.crt lacks {0}, or what has signed it: servers trust a root alone; add it")]
    NoRoot(String),
    /// Not for this.
    #[error(
        "tls.crt lacks the usage {0}: add server auth and client auth, since servers present it to clients and to each other"
    )]
    Purpose(&'static str),
    /// Anything else.
    #[error("tls.crt cannot be used: {0}")]
    Unusable(Error),
}

impl MaterialError {
    /// CamelCase.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoSecret => "SecretNotFound",
            Self::NotRead(_) => "SecretNotRead",
            Self::Expired(_) => "SecretExpired",
            Self::Missing(_)
            | Self::Unreadable { .. }
            | Self::OtherKey
            | Self::NotYetValid
            | Self::NotTrusted
            | Self::NoRoot(_)
            | Self::Purpose(_)
            | Self::Unusable(_) => "CertificateRefused",
        }
    }
}

impl Material {
    /// Reads and checks the files of a Secret.
    pub fn of(files: &BTreeMap<String, ByteString>, now: Timestamp) -> Result<Self, MaterialError> {
        let file = |name: &'static str| {
            let found = files.get(name).filter(|bytes| !bytes.0.is_empty());
            found
                .map(|bytes| bytes.0.as_slice())
                .ok_or(MaterialError::Missing(name))
        };
        let (chain, key) = (file(CERTIFICATE)?, file(KEY)?);
        let authorities = Authorities::of(file(AUTHORITIES)?)?;
        let certificates = certificates(CERTIFICATE, chain)?;
        let private = PrivateKeyDer::from_pem_slice(key);
        let private = private.map_err(|error| unreadable(KEY, &error))?;
        let provider = aws_lc_rs::default_provider();
        let fits = CertifiedKey::from_der(certificates.clone(), private, &provider);
        fits.map_err(|error| {
            if matches!(error, Error::InconsistentKeys(_)) {
                MaterialError::OtherKey
            } else {
                MaterialError::Unusable(error)
            }
        })?;
        let [leaf, between @ ..] = certificates.as_slice() else {
            return Err(MaterialError::Missing(CERTIFICATE));
        };
        authorities.check((leaf, between), now)?;
        let facts = CertificateFacts::of(&certificates, &authorities)?;
        if facts.not_after <= now {
            return Err(MaterialError::Expired(facts.not_after));
        }
        Ok(Self {
            certificate: Certificate {
                digits: digits(certificates.iter().map(AsRef::as_ref)),
                chain: chain.to_vec(),
                key: key.to_vec(),
            },
            authorities,
        })
    }
}

impl CertificateFacts {
    /// Of a chain in PEM form.
    pub fn of_file(chain: &[u8], authorities: &Authorities) -> Result<Self, MaterialError> {
        Self::of(&certificates(CERTIFICATE, chain)?, authorities)
    }

    /// It is valid as long as everything above it is. The TLS library of the servers takes only a certificate that has signed itself for the
    /// end of a chain (OpenSSL without `X509_V_FLAG_PARTIAL_CHAIN`).
    fn of(chain: &[CertificateDer<'_>], authorities: &Authorities) -> Result<Self, MaterialError> {
        let above: Result<Vec<_>, _> = authorities.0.keys().map(|one| parsed(one)).collect();
        let above = above?;
        let chain: Result<Vec<_>, _> = chain.iter().map(|one| parsed(one)).collect();
        let chain = chain?;
        let leaf = chain.first().ok_or(MaterialError::Missing(CERTIFICATE))?;
        let (mut current, mut until) = (leaf, leaf.validity().not_after.timestamp());
        // A chain has no more certificates than there are.
        for _ in 0..=chain.len() + above.len() {
            if current.issuer().as_raw() == current.subject().as_raw() {
                let until = Timestamp::from_second(until);
                return Ok(Self {
                    serial: hexadecimal(leaf.raw_serial()),
                    not_after: until.map_err(|error| unparsed(&error))?,
                });
            }
            let mut all = chain.iter().chain(&above);
            let next = all.find(|one| one.subject().as_raw() == current.issuer().as_raw());
            let Some(next) = next else {
                return Err(MaterialError::NoRoot(current.issuer().to_string()));
            };
            current = next;
            until = until.min(current.validity().not_after.timestamp());
        }
        Err(MaterialError::NoRoot(current.issuer().to_string()))
    }
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, MaterialError> {
    let parsed = X509Certificate::from_der(der);
    parsed
        .map(|(_, certificate)| certificate)
        .map_err(|error| unparsed(&error))
}

fn unparsed(error: &dyn fmt::Display) -> MaterialError {
    MaterialError::Unreadable {
        file: CERTIFICATE,
        why: error.to_string(),
    }
}

impl Authorities {
    /// Reads certificates in PEM form.
    pub fn of(pem: &[u8]) -> Result<Self, MaterialError> {
        let text = String::from_utf8_lossy(pem);
        let mut found = BTreeMap::new();
        for block in text.split(BEGIN).skip(1) {
            let body = block.split(END).next().unwrap_or_default();
            let block = format!("{BEGIN}{body}{END}\n").into_bytes();
            for certificate in certificates(AUTHORITIES, &block)? {
                found.insert(certificate.to_vec(), block.clone());
            }
        }
        if found.is_empty() {
            return Err(MaterialError::Missing(AUTHORITIES));
        }
        Ok(Self(found))
    }

    /// These and those.
    #[must_use]
    pub fn with(&self, others: &Self) -> Self {
        let all = self.0.iter().chain(&others.0);
        Self(all.map(|(key, pem)| (key.clone(), pem.clone())).collect())
    }

    /// Names them.
    pub fn digits(&self) -> String {
        digits(self.0.keys().map(Vec::as_slice))
    }

    /// In PEM form.
    pub fn pem(&self) -> Vec<u8> {
        self.0.values().flatten().copied().collect()
    }

    /// Whether servers that trust these accept the certificate from clients and from each other.
    fn check(
        &self,
        (leaf, between): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        now: Timestamp,
    ) -> Result<(), MaterialError> {
        let until = parsed(leaf)?.validity().not_after.timestamp();
        let until = Timestamp::from_second(until).map_err(|error| unparsed(&error))?;
        let mut roots = RootCertStore::empty();
        for authority in self.0.keys() {
            let added = roots.add(CertificateDer::from(authority.as_slice()).into_owned());
            added.map_err(|error| MaterialError::Unreadable {
                file: AUTHORITIES,
                why: error.to_string(),
            })?;
        }
        let refused = |error: Error, purpose| {
            use CertificateError as Why;
            let Error::InvalidCertificate(why) = &error else {
                return MaterialError::Unusable(error);
            };
            if matches!(why, Why::Expired | Why::ExpiredContext { .. }) {
                MaterialError::Expired(until)
            } else if matches!(why, Why::NotValidYet | Why::NotValidYetContext { .. }) {
                MaterialError::NotYetValid
            } else if matches!(why, Why::UnknownIssuer) {
                MaterialError::NotTrusted
            } else if matches!(why, Why::InvalidPurpose | Why::InvalidPurposeContext { .. }) {
                MaterialError::Purpose(purpose)
            } else {
                MaterialError::Unusable(error)
            }
        };
        let seconds = u64::try_from(now.as_second()).unwrap_or_default();
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let provider = Arc::new(aws_lc_rs::default_provider());
        let as_server = ParsedCertificate::try_from(leaf).and_then(|parsed| {
            let algorithms = provider.signature_verification_algorithms.all;
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed, &roots, between, time, algorithms,
            )
        });
        as_server.map_err(|error| refused(error, "server auth"))?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier
            .build()
            .map_err(|error| MaterialError::Unreadable {
                file: AUTHORITIES,
                why: error.to_string(),
            })?;
        let as_client = verifier.verify_client_cert(leaf, between, time);
        as_client.map_err(|error| refused(error, "client auth"))?;
        Ok(())
    }
}

fn certificates(
    file: &'static str,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &'static str, error: &pem::Error) -> MaterialError {
    MaterialError::Unreadable {
        file,
        why: error.to_string(),
    }
}

fn digits<'a>(parts: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // Each by its own hash: where one ends is no question.
        hash.update(Sha256::digest(part));
    }
    let mut digits = hexadecimal(&hash.finalize());
    digits.truncate(DIGITS);
    digits
}
