//! What can go wrong with a backup in a bucket, in sentences that name the object, the cause and the cure.
//!
//! Errors of the S3 client are classified ([`super::classify`]) and not kept: their `Debug` form repeats headers and bodies
//! of the server, which belong in no log.

use super::{
    cause::S3Cause, codec::CodecError, location::LocationError, manifest::ManifestError,
    operation::S3Operation, pool::WorkCancelled,
};
use crate::errors::Recovery;
use std::{fmt, time::Duration};

/// The object of a request, and the store it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Path {
    /// Bucket.
    pub bucket: String,
    /// Key of the object, or the prefix of a listing; may be empty.
    pub key: String,
    /// Address of the store; `None` for AWS.
    pub endpoint: Option<String>,
}

impl fmt::Display for S3Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = self.endpoint.as_deref().unwrap_or("AWS");
        write!(f, "s3://{}/{} at {endpoint}", self.bucket, self.key)
    }
}

/// Why something in storage failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The location is invalid.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// A request failed.
    #[error("cannot {operation} {path}: {}", explained(*cause, *operation, detail))]
    Request {
        /// What was asked for.
        operation: S3Operation,
        /// Of which object.
        path: Box<S3Path>,
        /// Why it failed.
        cause: S3Cause,
        /// What the server or the operating system said; no secret in it.
        detail: String,
    },
    /// Parts do not leave fast enough: the data source must not be held longer.
    #[error(
        "cannot upload {path}: no part was accepted within {} s (last error: {last}); the store is too slow or unreachable",
        waited.as_secs()
    )]
    Stalled {
        /// The object that is uploaded.
        path: Box<S3Path>,
        /// How long it waited.
        waited: Duration,
        /// How the last try ended.
        last: String,
    },
    /// More than 10,000 parts would be needed.
    #[error(
        "cannot upload {path}: it needs more than 10,000 parts of {part_size} bytes; set a larger part size"
    )]
    TooManyParts {
        /// The object that is uploaded.
        path: Box<S3Path>,
        /// Size of one part in bytes.
        part_size: usize,
    },
    /// Stored bytes are not what the backup's records say.
    #[error(
        "block {block} of {path} is damaged: {what}; the backup cannot be trusted, use another one"
    )]
    DamagedBlock {
        /// The object that holds the block.
        path: Box<S3Path>,
        /// Number of the block, from 0.
        block: usize,
        /// What is wrong with it.
        what: String,
    },
    /// A document cannot be parsed.
    #[error("{path} is damaged: {what}; the backup cannot be trusted, use another one")]
    DamagedDocument {
        /// The object that holds the document.
        path: Box<S3Path>,
        /// What is wrong with it.
        what: String,
    },
    /// The records of a backup contradict each other.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A task was cancelled because the process is ending.
    #[error(transparent)]
    Cancelled(#[from] WorkCancelled),
    /// A block cannot be compressed.
    #[error("a block cannot be compressed: {0}")]
    Codec(#[from] CodecError),
}

/// The cause with the detail beside it, then the cure: a message that is too long loses what stands before the cure.
fn explained(cause: S3Cause, operation: S3Operation, detail: &str) -> String {
    let text = cause.explain(operation);
    match text.split_once(": ") {
        _ if detail.is_empty() => text.into_owned(),
        Some((cause, cure)) => format!("{cause} ({detail}): {cure}"),
        None => format!("{text} ({detail})"),
    }
}

impl StorageError {
    /// Whether another try may succeed.
    pub fn recovery(&self) -> Recovery {
        match self {
            Self::Request { cause, .. } => cause.recovery(),
            Self::Stalled { .. } | Self::Cancelled(_) => Recovery::Soon,
            // It may have been damaged on its way.
            Self::DamagedBlock { .. } => Recovery::Later,
            Self::Location(_)
            | Self::TooManyParts { .. }
            | Self::DamagedDocument { .. }
            | Self::Manifest(_)
            | Self::Codec(_) => Recovery::Never,
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
            | Self::Cancelled(_)
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
            Self::Cancelled(_) => "Cancelled",
            Self::Codec(_) => "CodecFailed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_missing_right() {
        let path = S3Path {
            bucket: "backups".to_owned(),
            key: "shop/".to_owned(),
            endpoint: None,
        };
        let refusal = |operation, cause| {
            let (path, detail) = (Box::new(path.clone()), String::new());
            let error = StorageError::Request {
                operation,
                path,
                cause,
                detail,
            };
            error.to_string()
        };
        assert_eq!(
            refusal(S3Operation::ListUploads, S3Cause::AccessDenied),
            "cannot list unfinished uploads of s3://backups/shop/ at AWS: access denied: allow the access key \
             s3:ListBucketMultipartUploads here"
        );
        let other = refusal(S3Operation::Delete, S3Cause::NoSuchBucket);
        assert!(!other.contains("s3:Delete"), "{other}");
    }

    /// What a store says may be long; a status shows 256 characters.
    #[test]
    fn the_cure_survives_the_limit_of_a_message() {
        let error = StorageError::Request {
            operation: S3Operation::UploadPart,
            path: Box::new(S3Path {
                bucket: "backups".to_owned(),
                key: "team/shop/20260101t000000z-5a28832d/shard-0000.rdb".to_owned(),
                endpoint: Some("https://store.example.com".to_owned()),
            }),
            cause: S3Cause::WrongSecret,
            detail: format!("SignatureDoesNotMatch: {}", "as computed. ".repeat(20)),
        };
        let shown = crate::sentence::shortened(&error.to_string());
        assert!(shown.starts_with("cannot "), "{shown}");
        assert!(shown.contains("s3://backups/team"), "{shown}");
        assert!(
            shown.ends_with("correct secretAccessKey in the credentials Secret"),
            "{shown}"
        );
        let cause = S3Cause::ServerFault;
        assert_eq!(
            explained(cause, S3Operation::Read, "HTTP 503"),
            "the store has an internal problem (HTTP 503)"
        );
    }
}
