//! A location in S3-compatible storage, validated once.

pub use crds::Checksums;
use secrecy::{ExposeSecret, SecretString};
use std::{collections::BTreeMap, fmt};

/// The values of a location as a user writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given<'a> {
    /// Name of the bucket.
    pub bucket: &'a str,
    /// Path inside the bucket; slashes at its ends do not count.
    pub prefix: Option<&'a str>,
    /// Region; `us-east-1` if absent, which most stores other than AWS accept.
    pub region: Option<&'a str>,
    /// `http://` or `https://` address of the store; absent for AWS.
    pub endpoint: Option<&'a str>,
    /// Bucket in the path instead of the host; default: true with an endpoint, false without.
    pub force_path_style: Option<bool>,
    /// Whether requests carry CRC checksums.
    pub checksums: Checksums,
    /// Fixed size of multipart parts in bytes; default: chosen by the size of the data.
    pub part_size: Option<u64>,
}

/// A validated location: a bucket and how to reach it. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Location {
    bucket: String,
    prefix: String,
    region: String,
    endpoint: Option<String>,
    path_style: bool,
    checksums: bool,
    part_size: Option<usize>,
}

/// Why plain values are not a location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocationError {
    /// The bucket's name cannot exist.
    #[error(
        "bucket {0:?} is not a bucket name: write 3 to 63 letters, digits, dots, hyphens or underscores"
    )]
    Bucket(String),
    /// The prefix cannot be part of a key.
    #[error(
        "prefix {0:?} cannot be part of an object key: leave out control characters, empty segments, \".\" and \"..\""
    )]
    Prefix(String),
    /// The endpoint is not an address.
    #[error(
        "endpoint {0:?} is not the address of a store: write it like https://s3.example.com:9000"
    )]
    Endpoint(String),
    /// The region cannot be one.
    #[error(
        "region {0:?} is not a region: write letters, digits and hyphens, for example eu-central-1"
    )]
    Region(String),
    /// The part size is outside what S3 takes.
    #[error("part size of {0} bytes is outside the 5 MiB to 1 GiB that parts may have")]
    PartSize(u64),
}

/// The smallest part S3 takes, the last one aside.
pub const SMALLEST_PART: u64 = 5 << 20;
/// The largest part that is sensible to hold in memory (S3 would take 5 GiB).
pub const LARGEST_PART: u64 = 1 << 30;

impl Location {
    /// Checks plain values.
    pub fn new(given: &Given<'_>) -> Result<Self, LocationError> {
        let endpoint = given.endpoint.map(endpoint).transpose()?;
        Ok(Self {
            bucket: bucket(given.bucket)?,
            prefix: prefix(given.prefix.unwrap_or_default())?,
            region: region(given.region.unwrap_or("us-east-1"))?,
            path_style: given.force_path_style.unwrap_or(endpoint.is_some()),
            checksums: match given.checksums {
                Checksums::Auto => endpoint.is_none(),
                Checksums::Always => true,
                Checksums::Never => false,
            },
            part_size: given.part_size.map(part_size).transpose()?,
            endpoint,
        })
    }

    /// Checks a location as it stands in a custom resource.
    pub fn from_spec(spec: &crds::S3Location) -> Result<Self, LocationError> {
        Self::new(&Given {
            bucket: &spec.bucket,
            prefix: spec.prefix.as_deref(),
            region: spec.region.as_deref(),
            endpoint: spec.endpoint.as_deref(),
            force_path_style: spec.force_path_style,
            checksums: spec.checksums,
            part_size: None,
        })
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// Path inside the bucket without slashes at its ends; may be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Region that requests are signed for.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Address of the store; `None` for AWS.
    pub fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref()
    }

    /// Whether the bucket goes into the path.
    pub fn path_style(&self) -> bool {
        self.path_style
    }

    /// Whether requests carry CRC checksums wherever they can.
    pub fn checksums(&self) -> bool {
        self.checksums
    }

    /// The part size that was asked for, in bytes.
    pub fn part_size(&self) -> Option<usize> {
        self.part_size
    }

    /// Whether TLS protects what is sent.
    pub fn encrypted(&self) -> bool {
        self.endpoint
            .as_deref()
            .is_none_or(|endpoint| endpoint.starts_with("https://"))
    }
}

fn bucket(name: &str) -> Result<String, LocationError> {
    let fits = (3..=63).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        && name.starts_with(|first: char| first.is_ascii_alphanumeric());
    fits.then(|| name.to_owned())
        .ok_or_else(|| LocationError::Bucket(name.to_owned()))
}

fn prefix(path: &str) -> Result<String, LocationError> {
    let trimmed = path.trim_matches('/');
    let fits = trimmed.is_empty()
        || trimmed.len() <= 512
            && !trimmed.contains(char::is_control)
            && !trimmed
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."));
    fits.then(|| trimmed.to_owned())
        .ok_or_else(|| LocationError::Prefix(path.to_owned()))
}

fn region(name: &str) -> Result<String, LocationError> {
    let fits = !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    fits.then(|| name.to_owned())
        .ok_or_else(|| LocationError::Region(name.to_owned()))
}

/// A URL with user and password would put a secret where it is shown, so `@` is refused.
fn endpoint(url: &str) -> Result<String, LocationError> {
    let rest = url
        .strip_prefix("https://")
        .or_else(|| url.strip_prefix("http://"));
    let host = rest.unwrap_or_default().trim_end_matches('/');
    let fits = !host.is_empty()
        && host.len() <= 512
        && host.bytes().all(|byte| byte.is_ascii_graphic())
        && !host.contains(['@', '?', '#', '"', '<', '>', '\\']);
    fits.then(|| url.trim_end_matches('/').to_owned())
        .ok_or_else(|| LocationError::Endpoint(without_user(url)))
}

fn without_user(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, host)) => format!("(user left out)@{host}"),
        None => url.to_owned(),
    }
}

fn part_size(bytes: u64) -> Result<usize, LocationError> {
    (SMALLEST_PART..=LARGEST_PART)
        .contains(&bytes)
        .then(|| usize::try_from(bytes).ok())
        .flatten()
        .ok_or(LocationError::PartSize(bytes))
}

/// An access key. Shown nowhere: `Debug` hides the secret parts, and error texts are cleaned of them.
#[derive(Clone)]
pub struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: SecretString,
    pub(crate) session_token: Option<SecretString>,
}

/// Why a Secret holds no access key. Names the missing key, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialsError {
    /// Nothing stands under the key.
    #[error("the credentials Secret has no key {0}")]
    Missing(&'static str),
    /// The value is not text, or empty.
    #[error("key {0} of the credentials Secret is not plain text")]
    NotText(&'static str),
}

impl Credentials {
    /// An access key of plain values.
    pub fn new(
        access_key_id: String,
        secret_access_key: SecretString,
        session_token: Option<SecretString>,
    ) -> Self {
        Self {
            access_key_id,
            secret_access_key,
            session_token,
        }
    }

    /// Reads the data of a Secret: `accessKeyId`, `secretAccessKey`, optional `sessionToken`, or the names that AWS tools
    /// use (`AWS_ACCESS_KEY_ID` and so on). A newline at the end, as editors leave it, does not count.
    pub fn from_secret<V: AsRef<[u8]>>(
        data: &BTreeMap<String, V>,
    ) -> Result<Self, CredentialsError> {
        let missing = CredentialsError::Missing;
        Ok(Self {
            access_key_id: value(data, "accessKeyId", "AWS_ACCESS_KEY_ID")?
                .ok_or(missing("accessKeyId"))?,
            secret_access_key: value(data, "secretAccessKey", "AWS_SECRET_ACCESS_KEY")?
                .ok_or(missing("secretAccessKey"))?
                .into(),
            session_token: value(data, "sessionToken", "AWS_SESSION_TOKEN")?.map(Into::into),
        })
    }

    /// Text without any part of this access key, for error texts that come from a server.
    pub(crate) fn redact(&self, text: &str) -> String {
        let secrets = [
            Some(self.access_key_id.as_str()),
            Some(self.secret_access_key.expose_secret()),
            self.session_token.as_ref().map(ExposeSecret::expose_secret),
        ];
        secrets
            .into_iter()
            .flatten()
            .filter(|secret| secret.len() >= 4)
            .fold(text.to_owned(), |text, secret| {
                text.replace(secret, "(hidden)")
            })
    }
}

fn value<V: AsRef<[u8]>>(
    data: &BTreeMap<String, V>,
    name: &'static str,
    other: &'static str,
) -> Result<Option<String>, CredentialsError> {
    let Some(bytes) = data.get(name).or_else(|| data.get(other)) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(bytes.as_ref()).map_err(|_| CredentialsError::NotText(name))?;
    match text.trim() {
        "" => Err(CredentialsError::NotText(name)),
        text => Ok(Some(text.to_owned())),
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given<'static> {
        Given {
            bucket: "backups",
            ..Given::default()
        }
    }

    #[test]
    fn defaults_follow_the_endpoint() {
        let aws = Location::new(&given()).unwrap();
        assert_eq!(
            (
                aws.region(),
                aws.path_style(),
                aws.checksums(),
                aws.encrypted()
            ),
            ("us-east-1", false, true, true)
        );
        let own = Location::new(&Given {
            endpoint: Some("http://s3.storage:9000/"),
            ..given()
        })
        .unwrap();
        assert_eq!(own.endpoint(), Some("http://s3.storage:9000"));
        assert_eq!(
            (own.path_style(), own.checksums(), own.encrypted()),
            (true, false, false)
        );
    }

    #[test]
    fn what_is_no_location_is_refused() {
        for bucket in ["", "ab", "a/b", "-ab", "bücket", &"a".repeat(64)] {
            let given = Given { bucket, ..given() };
            assert!(Location::new(&given).is_err(), "{bucket}");
        }
        for prefix in ["a//b", "../a", "a/./b", "a\nb"] {
            let prefix = Some(prefix);
            assert!(
                Location::new(&Given { prefix, ..given() }).is_err(),
                "{prefix:?}"
            );
        }
        for endpoint in [
            "",
            "s3.example.com",
            "ftp://x",
            "http://",
            "http://a b",
            "http://x?y",
        ] {
            let endpoint = Some(endpoint);
            assert!(
                Location::new(&Given {
                    endpoint,
                    ..given()
                })
                .is_err(),
                "{endpoint:?}"
            );
        }
        for part_size in [0, (5 << 20) - 1, 2 << 30, u64::MAX] {
            let part_size = Some(part_size);
            assert!(
                Location::new(&Given {
                    part_size,
                    ..given()
                })
                .is_err(),
                "{part_size:?}"
            );
        }
    }

    #[test]
    fn a_password_in_the_endpoint_is_refused_and_not_repeated() {
        let endpoint = Some("https://user:hunter2@s3.example.com");
        let error = Location::new(&Given {
            endpoint,
            ..given()
        })
        .unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }

    #[test]
    fn secrets_are_read_under_both_names_and_never_shown() {
        for (id, secret, token) in [
            ("accessKeyId", "secretAccessKey", "sessionToken"),
            (
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "AWS_SESSION_TOKEN",
            ),
        ] {
            let data: BTreeMap<String, &[u8]> = BTreeMap::from([
                (id.to_owned(), &b"AKIAEXAMPLE\n"[..]),
                (secret.to_owned(), b"wJalrXUtnFEMI"),
                (token.to_owned(), b"session"),
            ]);
            let credentials = Credentials::from_secret(&data).unwrap();
            assert_eq!(credentials.access_key_id, "AKIAEXAMPLE");
            assert_eq!(format!("{credentials:?}"), "Credentials { .. }");
            let text = credentials.redact("AKIAEXAMPLE signed with wJalrXUtnFEMI in a session");
            assert_eq!(text, "(hidden) signed with (hidden) in a (hidden)");
        }
        let data = BTreeMap::from([("accessKeyId".to_owned(), b"AKIAEXAMPLE")]);
        let error = Credentials::from_secret(&data).unwrap_err();
        assert_eq!(error, CredentialsError::Missing("secretAccessKey"));
    }
}
