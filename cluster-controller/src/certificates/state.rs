//! The certificates that the servers are to have now: what the pods mount, and what is set on servers that run. Pure.

use super::{
    encryption,
    material::{Authorities, Certificate, CertificateFacts, Material, MaterialError},
};
use crds::{
    BUS_PORT, ClientAuth, Encryption, KEY_ENCRYPTION, KEY_PRESENTED, authorities_file,
    certificate_file, key_file,
};
use k8s_openapi::ByteString;
use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

/// Key of the Secret that the pods mount: the digits of the authorities that servers trust.
const KEY_TRUSTED: &str = "trusted";
/// The same: whether clients show a certificate, in the engine's words.
const KEY_CLIENTS: &str = "clients";
/// The same: lines of redis.conf.
const KEY_SETTINGS: &str = "tls.conf";
/// The same: the last step before servers came to encrypt so far.
const KEY_SINCE: &str = "since";
/// The folder where pods mount it, from the server's own, wherever that is.
const FOLDER: &str = "../tls/";

/// Which files a server uses, whether its clients show a certificate, and how far it encrypts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// Name of the certificate that it shows: see [`FileName`].
    pub certificate: FileName,
    /// Name of the authorities that it trusts.
    pub authorities: FileName,
    /// `tls-auth-clients`.
    pub clients: String,
    /// Its ports, and what it sends other servers.
    pub encryption: Encryption,
}

/// The name of a file without its ending: the number of the step that brought it, and digits of what it holds. A server can take it only
/// once its pod has that step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileName {
    step: u32,
    digits: String,
}

impl FileName {
    fn parse(text: &str) -> Option<Self> {
        let (step, digits) = text.split_once('-')?;
        Some(Self {
            step: step.parse().ok()?,
            digits: digits.to_owned(),
        })
    }

    /// Whether it holds this.
    pub fn is_of(&self, digits: &str) -> bool {
        self.digits == digits
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.step, self.digits)
    }
}

impl ServerTls {
    /// Settings that say which files.
    const FILES: [&str; 3] = ["tls-cert-file", "tls-ca-cert-file", "tls-auth-clients"];

    /// Settings that say all of it.
    pub fn names() -> impl Iterator<Item = &'static str> {
        let ports = encryption::settings(Encryption::Off);
        let ports = ports.into_iter().map(|(name, _)| name);
        Self::FILES.into_iter().chain(ports)
    }

    /// As a server reports them.
    pub fn reported(settings: &BTreeMap<String, String>) -> Option<Self> {
        let value = |name: &str| settings.get(name);
        let digits = |name: &str| {
            let file = value(name)?.strip_prefix(FOLDER)?;
            FileName::parse(file.split('.').next()?)
        };
        let [certificate, authorities, clients] = Self::FILES;
        Some(Self {
            certificate: digits(certificate)?,
            authorities: digits(authorities)?,
            clients: value(clients)?.clone(),
            encryption: encryption::reported(settings)?,
        })
    }

    /// The settings by which a server uses them.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let Self {
            certificate,
            authorities,
            clients,
            encryption,
        } = self;
        let (certificate, authorities) = (certificate.to_string(), authorities.to_string());
        let [name, authorities_name, clients_name] = Self::FILES;
        let mut all = vec![
            (name, format!("{FOLDER}{}", certificate_file(&certificate))),
            (
                "tls-key-file",
                format!("{FOLDER}{}", key_file(&certificate)),
            ),
            (
                authorities_name,
                format!("{FOLDER}{}", authorities_file(&authorities)),
            ),
            (clients_name, clients.clone()),
        ];
        all.extend(encryption::settings(*encryption));
        all
    }
}

/// Whether clients show a certificate, as the engine says it.
pub fn clients(policy: ClientAuth) -> &'static str {
    match policy {
        ClientAuth::Off => "no",
        ClientAuth::Optional => "optional",
        ClientAuth::Required => "yes",
    }
}

/// The certificates of a cluster. Stored in the Secret that its pods mount.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificatesState {
    /// What every server is to use.
    pub wanted: ServerTls,
    /// Whether pods start without it from now on.
    leaves: bool,
    /// The last step before they came to encrypt so far: who shows a certificate of a later one has mounted what came after.
    since: u32,
    files: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for CertificatesState {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys are among the files.
        let files: Vec<&String> = self.files.keys().collect();
        out.debug_struct("CertificatesState")
            .field("wanted", &self.wanted)
            .field("encryption", &self.encryption())
            .field("files", &files)
            .finish_non_exhaustive()
    }
}

impl CertificatesState {
    /// The first of a cluster whose servers are to encrypt so far.
    pub fn first(material: &Material, policy: ClientAuth, encryption: Encryption) -> Self {
        let name = |digits: String| FileName { step: 0, digits };
        let nothing = Self {
            wanted: ServerTls {
                certificate: name(String::new()),
                authorities: name(String::new()),
                clients: clients(policy).to_owned(),
                encryption,
            },
            leaves: false,
            since: 0,
            files: BTreeMap::new(),
        };
        nothing
            .trusting(&material.authorities)
            .showing(&material.certificate)
            .only_wanted()
    }

    /// The next step: servers trust these authorities. Files of earlier steps but the last go.
    #[must_use]
    pub fn trusting(&self, authorities: &Authorities) -> Self {
        let mut next = self.only_wanted();
        let name = self.next_name(authorities.digits());
        let file = authorities_file(&name.to_string());
        next.files.insert(file, authorities.pem());
        next.wanted.authorities = name;
        next
    }

    /// The next step: servers show this certificate. Files of earlier steps but the last go.
    #[must_use]
    pub fn showing(&self, certificate: &Certificate) -> Self {
        let mut next = self.only_wanted();
        let name = self.next_name(certificate.digits.clone());
        next.files.extend([
            (
                certificate_file(&name.to_string()),
                certificate.chain.clone(),
            ),
            (key_file(&name.to_string()), certificate.key.clone()),
        ]);
        next.wanted.certificate = name;
        next
    }

    /// How far the servers encrypt.
    pub fn encryption(&self) -> Encryption {
        if self.leaves {
            Encryption::Off
        } else {
            self.wanted.encryption
        }
    }

    /// The same servers, which encrypt so far from now on.
    #[must_use]
    pub fn encrypting(mut self, encryption: Encryption) -> Self {
        if self.encryption() != encryption {
            self.set(encryption);
            self.since = self.step();
        }
        self
    }

    /// Whether a server that uses all this has mounted a step that came after servers began to encrypt so far.
    pub fn is_mounted_since(&self) -> bool {
        self.wanted.certificate.step > self.since
    }

    /// The next step, with the same certificate.
    #[must_use]
    pub fn shown_again(&self) -> Self {
        let name = self.wanted.certificate.to_string();
        let file = |name: String| self.files.get(&name).cloned().unwrap_or_default();
        self.showing(&Certificate {
            digits: self.wanted.certificate.digits.clone(),
            chain: file(certificate_file(&name)),
            key: file(key_file(&name)),
        })
    }

    /// A server whose pod still has certificates when the others' have none listens on both ports.
    fn set(&mut self, encryption: Encryption) {
        self.leaves = !encryption.has_certificates();
        self.wanted.encryption = encryption.max(Encryption::Prepared);
    }

    fn next_name(&self, digits: String) -> FileName {
        let step = self.step() + 1;
        FileName { step, digits }
    }

    fn step(&self) -> u32 {
        let ServerTls {
            certificate,
            authorities,
            ..
        } = &self.wanted;
        certificate.step.max(authorities.step)
    }

    /// As it was stored.
    pub fn stored(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        let wanted = ServerTls {
            certificate: FileName::parse(&text(KEY_PRESENTED)?)?,
            authorities: FileName::parse(&text(KEY_TRUSTED)?)?,
            clients: text(KEY_CLIENTS)?,
            encryption: Encryption::Prepared,
        };
        let mut others = [
            KEY_PRESENTED,
            KEY_TRUSTED,
            KEY_CLIENTS,
            KEY_SETTINGS,
            KEY_ENCRYPTION,
            KEY_SINCE,
        ]
        .map(ToOwned::to_owned)
        .to_vec();
        others.extend([certificate_file(KEY_PRESENTED), key_file(KEY_PRESENTED)]);
        let files = data.iter().filter(|(name, _)| !others.contains(name));
        let mut state = Self {
            wanted,
            leaves: false,
            since: text(KEY_SINCE)
                .and_then(|since| since.parse().ok())
                .unwrap_or(0),
            files: files
                .map(|(name, file)| (name.clone(), file.0.clone()))
                .collect(),
        };
        // Before there was this key, servers encrypted from their start on.
        let encryption = text(KEY_ENCRYPTION).map(|name| Encryption::parse(&name));
        state.set(encryption.unwrap_or(Some(Encryption::Only))?);
        state.is_whole().then_some(state)
    }

    fn is_whole(&self) -> bool {
        let mut names = self.names().into_iter();
        names.all(|name| self.files.contains_key(&name))
    }

    /// The files that are wanted.
    fn names(&self) -> [String; 3] {
        let certificate = self.wanted.certificate.to_string();
        [
            certificate_file(&certificate),
            key_file(&certificate),
            authorities_file(&self.wanted.authorities.to_string()),
        ]
    }

    /// Everything that the Secret has.
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let mut settings = format!("cluster-port {BUS_PORT}\n");
        for (name, value) in self.wanted.settings() {
            // Writing into a String cannot fail.
            let _ = writeln!(settings, "{name} {value}");
        }
        let texts = [
            (KEY_PRESENTED, self.wanted.certificate.to_string()),
            (KEY_TRUSTED, self.wanted.authorities.to_string()),
            (KEY_CLIENTS, self.wanted.clients.clone()),
            (KEY_SETTINGS, settings),
            (KEY_ENCRYPTION, self.encryption().name().to_owned()),
            (KEY_SINCE, self.since.to_string()),
        ];
        let texts = texts.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        let files = self.files.iter();
        let files = files.map(|(name, file)| (name.clone(), ByteString(file.clone())));
        let all = texts.into_iter().chain(files);
        all.chain(self.presented()).collect()
    }

    /// The certificate that is presented and its key, under names that stay: for a program that is given their paths once.
    fn presented(&self) -> impl Iterator<Item = (String, ByteString)> {
        let name = self.wanted.certificate.to_string();
        [certificate_file, key_file]
            .into_iter()
            .filter_map(move |file| {
                let content = self.files.get(&file(&name))?;
                Some((file(KEY_PRESENTED), ByteString(content.clone())))
            })
    }

    /// What [`common::cluster::transport::TlsAccess`] is made of.
    pub fn access_files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        let presented = self.wanted.certificate.to_string().into_bytes();
        files.insert(KEY_PRESENTED.to_owned(), presented);
        files
    }

    /// The same without the files of before.
    #[must_use]
    pub fn only_wanted(&self) -> Self {
        let names = self.names();
        let files = self.files.iter().filter(|(name, _)| names.contains(name));
        Self {
            wanted: self.wanted.clone(),
            leaves: self.leaves,
            since: self.since,
            files: files
                .map(|(name, file)| (name.clone(), file.clone()))
                .collect(),
        }
    }

    /// Whom servers trust.
    pub fn authorities(&self) -> Result<Authorities, MaterialError> {
        let file = self
            .files
            .get(&authorities_file(&self.wanted.authorities.to_string()));
        Authorities::of(file.map(Vec::as_slice).unwrap_or_default())
    }

    /// For people, of the certificate that servers show.
    pub fn facts(&self) -> Result<CertificateFacts, MaterialError> {
        let file = self
            .files
            .get(&certificate_file(&self.wanted.certificate.to_string()));
        CertificateFacts::of_file(
            file.map(Vec::as_slice).unwrap_or_default(),
            &self.authorities()?,
        )
    }
}
