//! What can go wrong with a backup in a bucket, in sentences that name the object, the cause and the cure.
//!
//! Errors of the S3 client are taken apart here and not kept: their `Debug` form repeats headers and bodies of the server,
//! which belong in no log.

use super::{location::LocationError, manifest::ManifestError};
use std::{fmt, time::Duration};

/// What a request was about: the bucket, the key or prefix, and whom it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bucket.
    pub bucket: String,
    /// Key of the object, or the prefix of a listing; may be empty.
    pub key: String,
    /// Address of the store; `None` for AWS.
    pub endpoint: Option<String>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.as_deref().unwrap_or("AWS");
        write!(f, "s3://{}/{} at {endpoint}", self.bucket, self.key)
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum S3Cause {
    /// The bucket does not exist.
    NoSuchBucket,
    /// The object does not exist.
    NoSuchKey,
    /// The multipart upload does not exist (any more).
    NoSuchUpload,
    /// The access key may not do this.
    AccessDenied,
    /// The store does not know the access key.
    InvalidAccessKey,
    /// The secret does not belong to the access key.
    WrongSecret,
    /// A session token that ran out or does not fit.
    ExpiredToken,
    /// The clocks differ by more than the store takes.
    ClockSkew,
    /// The bucket is in another region.
    WrongRegion,
    /// No credentials were given and none were found.
    NoCredentials,
    /// The store lacks this operation.
    NotImplemented,
    /// Too many requests.
    Throttled,
    /// The store is in trouble (5xx).
    ServerFault,
    /// No answer in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// The certificate of the store is not trusted.
    UntrustedCertificate,
    /// A body that is not what was asked for or was damaged on the way.
    BadBody,
    /// A refusal of another kind; its code is in the text.
    Refused,
}

impl S3Cause {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Throttled
            | Self::ServerFault
            | Self::Timeout
            | Self::Connection
            | Self::BadBody => true,
            Self::NoSuchBucket
            | Self::NoSuchKey
            | Self::NoSuchUpload
            | Self::AccessDenied
            | Self::InvalidAccessKey
            | Self::WrongSecret
            | Self::ExpiredToken
            | Self::ClockSkew
            | Self::WrongRegion
            | Self::NoCredentials
            | Self::NotImplemented
            | Self::UntrustedCertificate
            | Self::Refused => false,
        }
    }

    /// One CamelCase word, for conditions, Events and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoSuchBucket => "NoSuchBucket",
            Self::NoSuchKey => "NoSuchKey",
            Self::NoSuchUpload => "NoSuchUpload",
            Self::AccessDenied => "AccessDenied",
            Self::InvalidAccessKey => "InvalidAccessKey",
            Self::WrongSecret => "WrongSecretKey",
            Self::ExpiredToken => "ExpiredToken",
            Self::ClockSkew => "ClockSkew",
            Self::WrongRegion => "WrongRegion",
            Self::NoCredentials => "NoCredentials",
            Self::NotImplemented => "StorageLacksOperation",
            Self::Throttled => "StorageThrottled",
            Self::ServerFault => "StorageFault",
            Self::Timeout => "StorageTimeout",
            Self::Connection => "StorageUnreachable",
            Self::UntrustedCertificate => "UntrustedCertificate",
            Self::BadBody => "StorageBadAnswer",
            Self::Refused => "StorageRefused",
        }
    }

    /// What happened and what to do about it.
    fn sentence(self) -> &'static str {
        match self {
            Self::NoSuchBucket => "the bucket does not exist: create it, or correct its name",
            Self::NoSuchKey => {
                "the object does not exist: correct the path, or look whether it was deleted"
            }
            Self::NoSuchUpload => "the store has dropped the unfinished upload: start it again",
            Self::AccessDenied => {
                "access denied: allow the access key to list the bucket and to get, put and delete objects and abort multipart uploads under this prefix"
            }
            Self::InvalidAccessKey => {
                "the store does not know the access key: correct accessKeyId in the credentials Secret"
            }
            Self::WrongSecret => {
                "the secret key does not belong to the access key: correct secretAccessKey in the credentials Secret"
            }
            Self::ExpiredToken => {
                "the session token is invalid or has run out: renew sessionToken in the credentials Secret"
            }
            Self::ClockSkew => {
                "the clocks of this machine and of the store differ too much: set them"
            }
            Self::WrongRegion => "the bucket is in another region: correct region",
            Self::NoCredentials => {
                "no credentials were found: name a Secret in credentialsSecretRef, or give the controller's pod an identity"
            }
            Self::NotImplemented => "the store does not offer this operation",
            Self::Throttled => "the store asks for fewer requests",
            Self::ServerFault => "the store has an internal problem",
            Self::Timeout => "the store did not answer in time",
            Self::Connection => {
                "the store cannot be reached or broke the connection: look at the endpoint, at DNS and at network policies"
            }
            Self::UntrustedCertificate => {
                "the certificate of the store is not trusted by the controller's image: use a certificate of a known authority, or http inside a trusted network"
            }
            Self::BadBody => "the answer of the store was damaged or not what was asked for",
            Self::Refused => "the store refused the request",
        }
    }
}

/// Why something in storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The place is written wrongly.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A request failed.
    #[error("cannot {operation} {place}: {}{}", told(*cause, operation), remark(detail))]
    Request {
        /// What was to be done: a verb.
        operation: &'static str,
        /// With what.
        place: Box<Place>,
        /// Why it failed.
        cause: S3Cause,
        /// What the server or the operating system said; no secret in it.
        detail: String,
    },
    /// Parts do not leave fast enough: the data source must not be held longer.
    #[error(
        "cannot upload {place}: no part was accepted within {} s (last problem: {last}); the store is too slow or out of reach",
        waited.as_secs()
    )]
    Stalled {
        /// The object.
        place: Box<Place>,
        /// How long was waited.
        waited: Duration,
        /// What the last try ended with.
        last: String,
    },
    /// More than 10,000 parts would be needed.
    #[error(
        "cannot upload {place}: it needs more than 10,000 parts of {part_size} bytes; set a larger part size"
    )]
    TooManyParts {
        /// The object.
        place: Box<Place>,
        /// Size of one part in bytes.
        part_size: usize,
    },
    /// Stored bytes are not what the backup's records say.
    #[error(
        "block {block} of {place} is damaged: {what}; the backup cannot be trusted, use another one"
    )]
    DamagedBlock {
        /// The object.
        place: Box<Place>,
        /// Number of the block, from 0.
        block: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A document is not what it should be.
    #[error("{place} is damaged: {what}; the backup cannot be trusted, use another one")]
    DamagedDocument {
        /// The document.
        place: Box<Place>,
        /// What is wrong with it.
        what: String,
    },
    /// The records of a backup contradict each other.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A compression thread went away; happens when the process ends.
    #[error("a compression task was cancelled")]
    Worker,
    /// The codec failed on data it cannot fail on.
    #[error("the compressor failed: {0}")]
    Codec(String),
}

/// What happened and what to do about it. Where access is denied, that is the name that AWS has for the missing right.
fn told(cause: S3Cause, operation: &str) -> String {
    let right = match operation {
        "list" => "s3:ListBucket",
        "look at" | "read" => "s3:GetObject and s3:ListBucket",
        "write" | "begin the upload of" | "upload a part of" | "complete the upload of" => {
            "s3:PutObject"
        }
        "delete" => "s3:DeleteObject",
        "list unfinished uploads of" => "s3:ListBucketMultipartUploads",
        "abort the upload of" => "s3:AbortMultipartUpload",
        _ => return cause.sentence().to_owned(),
    };
    if cause == S3Cause::AccessDenied {
        format!("access denied: allow the access key {right} here")
    } else {
        cause.sentence().to_owned()
    }
}

fn remark(detail: &str) -> String {
    match detail {
        "" => String::new(),
        detail => format!(" ({detail})"),
    }
}

impl StorageError {
    /// Whether another try may succeed without anybody changing something.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Request { cause, .. } => cause.is_transient(),
            Self::Stalled { .. } | Self::Worker => true,
            Self::Location(_)
            | Self::TooManyParts { .. }
            | Self::DamagedBlock { .. }
            | Self::DamagedDocument { .. }
            | Self::Manifest(_)
            | Self::Codec(_) => false,
        }
    }

    /// Whether it is in what is stored or asked for: another try, with other credentials even, would end in the same way.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Location(_)
            | Self::TooManyParts { .. }
            | Self::DamagedDocument { .. }
            | Self::Manifest(_)
            | Self::Codec(_) => true,
            // A block may have been damaged on its way, and credentials and rights are given while the work goes on.
            Self::DamagedBlock { .. }
            | Self::Request { .. }
            | Self::Stalled { .. }
            | Self::Worker => false,
        }
    }

    /// The cause, if a request failed.
    pub fn cause(&self) -> Option<S3Cause> {
        match self {
            Self::Request { cause, .. } => Some(*cause),
            Self::Location(_)
            | Self::Stalled { .. }
            | Self::TooManyParts { .. }
            | Self::DamagedBlock { .. }
            | Self::DamagedDocument { .. }
            | Self::Manifest(_)
            | Self::Worker
            | Self::Codec(_) => None,
        }
    }

    /// Whether the object asked for is not there.
    pub fn is_not_found(&self) -> bool {
        self.cause() == Some(S3Cause::NoSuchKey)
    }

    /// One CamelCase word, for conditions, Events and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Location(_) => "InvalidLocation",
            Self::Request { cause, .. } => cause.reason(),
            Self::Stalled { .. } => "StorageStalled",
            Self::TooManyParts { .. } => "PartSizeTooSmall",
            Self::DamagedBlock { .. } => "DamagedBlock",
            Self::DamagedDocument { .. } => "DamagedDocument",
            Self::Manifest(_) => "InvalidManifest",
            Self::Worker => "Cancelled",
            Self::Codec(_) => "CodecFailed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_missing_right() {
        let place = Place {
            bucket: "backups".to_owned(),
            key: "shop/".to_owned(),
            endpoint: None,
        };
        let refusal = |operation, cause| {
            let (place, detail) = (Box::new(place.clone()), String::new());
            let error = StorageError::Request {
                operation,
                place,
                cause,
                detail,
            };
            error.to_string()
        };
        assert_eq!(
            refusal("list unfinished uploads of", S3Cause::AccessDenied),
            "cannot list unfinished uploads of s3://backups/shop/ at AWS: access denied: allow the access key \
             s3:ListBucketMultipartUploads here"
        );
        let other = refusal("delete", S3Cause::NoSuchBucket);
        assert!(!other.contains("s3:Delete"), "{other}");
    }
}
