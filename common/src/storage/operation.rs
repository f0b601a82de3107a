//! What is asked of a store.

use std::fmt;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum S3Operation {
    /// List objects.
    List,
    /// Read the length of an object.
    Head,
    /// Read an object or a part of it.
    Read,
    /// Write an object by one request.
    Write,
    /// Begin a multipart upload.
    BeginUpload,
    /// Upload one part.
    UploadPart,
    /// Complete a multipart upload.
    CompleteUpload,
    /// List unfinished multipart uploads.
    ListUploads,
    /// Abort a multipart upload.
    AbortUpload,
    /// Delete an object.
    Delete,
}

impl S3Operation {
    /// AWS's name of the right that it needs.
    pub(super) fn right(self) -> &'static str {
        match self {
            Self::List => "s3:ListBucket",
            Self::Head | Self::Read => "s3:GetObject and s3:ListBucket",
            Self::Write | Self::BeginUpload | Self::UploadPart | Self::CompleteUpload => {
                "s3:PutObject"
            }
            Self::ListUploads => "s3:ListBucketMultipartUploads",
            Self::AbortUpload => "s3:AbortMultipartUpload",
            Self::Delete => "s3:DeleteObject",
        }
    }

    /// Whether `checksums: Always` adds headers to it.
    pub(super) fn carries_checksum(self) -> bool {
        match self {
            Self::Write | Self::BeginUpload | Self::UploadPart | Self::CompleteUpload => true,
            Self::List
            | Self::Head
            | Self::Read
            | Self::ListUploads
            | Self::AbortUpload
            | Self::Delete => false,
        }
    }
}

/// A verb, with what follows before the object: `cannot {operation} s3://…`.
impl fmt::Display for S3Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Head => "look at",
            Self::Read => "read",
            Self::Write => "write",
            Self::BeginUpload => "begin the upload of",
            Self::UploadPart => "upload a part of",
            Self::CompleteUpload => "complete the upload of",
            Self::ListUploads => "list unfinished uploads of",
            Self::AbortUpload => "abort the upload of",
            Self::Delete => "delete",
        })
    }
}
