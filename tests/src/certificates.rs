//! Certificates as an issuer in a cluster makes them, in Secrets as cert-manager writes them.

use anyhow::Result;
use cluster_controller::certificates::{material::Material, state::CertificatesState};
use common::cluster::transport::{TlsAccess, Transport};
use crds::{ClientAuth, Encryption, KEY_PRESENTED, certificate_file, key_file};
use k8s_openapi::{ByteString, jiff::Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, SerialNumber, date_time_ymd,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// An authority that signs certificates.
pub struct TestAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate with its key, in PEM form.
#[derive(Clone)]
pub struct TestCertificate {
    /// What servers and clients present.
    pub certificate: String,
    /// The private key that fits it.
    pub key: String,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Nothing.
    None,
    /// It expired long ago.
    Expired,
    /// It expires so soon.
    Expires(Duration),
    /// No client may show it.
    OnlyForServers,
}

impl TestAuthority {
    /// One of this name.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named(name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    /// Signs a certificate with this serial number.
    pub fn sign(&self, serial: u64, flaw: Flaw) -> Result<TestCertificate> {
        let mut params = CertificateParams::new(vec!["shop".to_owned()])?;
        params.distinguished_name = named("shop");
        params.serial_number = Some(SerialNumber::from(serial));
        match flaw {
            Flaw::None => {}
            Flaw::Expired => params.not_after = date_time_ymd(2021, 1, 1),
            Flaw::Expires(soon) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                params.not_after = date_time_ymd(1970, 1, 1) + now + soon;
            }
            Flaw::OnlyForServers => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }
        }
        let key = KeyPair::generate()?;
        Ok(TestCertificate {
            certificate: params.signed_by(&key, &self.issuer)?.pem(),
            key: key.serialize_pem(),
        })
    }

    /// Its own certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

impl TestCertificate {
    /// What the controller makes of it for pods, whose servers encrypt so far.
    pub fn state(&self, by: &TestAuthority, encryption: Encryption) -> Result<CertificatesState> {
        let secret = self.secret("certificates", by);
        let bytes = |key: &str| {
            let text = secret["stringData"][key].as_str().unwrap_or_default();
            (key.to_owned(), ByteString(text.as_bytes().to_vec()))
        };
        let data = ["tls.crt", "tls.key", "ca.crt"].map(bytes).into();
        let material = Material::of(&data, Timestamp::now())?;
        let clients = ClientAuth::Required;
        Ok(CertificatesState::first(&material, clients, encryption))
    }

    /// A Secret with it that trusts this authority.
    pub fn secret(&self, name: &str, authority: &TestAuthority) -> Value {
        json!({"metadata": {"name": name}, "type": "kubernetes.io/tls", "stringData": {
            "tls.crt": self.certificate, "tls.key": self.key, "ca.crt": authority.pem(),
        }})
    }

    /// A client that shows it, and accepts servers that show one of these.
    pub fn transport(&self, accepted: &[&Self]) -> Result<Transport> {
        let own = "own".to_owned();
        let mut files = BTreeMap::from([
            (KEY_PRESENTED.to_owned(), own.clone().into_bytes()),
            (
                certificate_file(&own),
                self.certificate.clone().into_bytes(),
            ),
            (key_file(&own), self.key.clone().into_bytes()),
        ]);
        for (number, one) in accepted.iter().enumerate() {
            let name = certificate_file(&number.to_string());
            files.insert(name, one.certificate.clone().into_bytes());
        }
        Ok(Transport::Tls(TlsAccess::from_files(&files)?))
    }
}
