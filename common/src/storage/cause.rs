//! Why a request to a store failed: one word, one sentence with the cure, and whether it may pass by itself.

use super::operation::S3Operation;
use crate::errors::Recovery;
use std::borrow::Cow;

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum S3Cause {
    /// The bucket does not exist.
    NoSuchBucket,
    /// The object does not exist.
    NoSuchKey,
    /// The multipart upload does not exist, or no longer.
    NoSuchUpload,
    /// The access key lacks the right.
    AccessDenied,
    /// The store does not know the access key.
    InvalidAccessKey,
    /// The secret does not belong to the access key.
    WrongSecret,
    /// The session token has expired or does not belong to the access key.
    ExpiredToken,
    /// The clocks differ by more than the store accepts.
    ClockSkew,
    /// The bucket is in another region.
    WrongRegion,
    /// The endpoint redirects to another scheme or host.
    Redirected,
    /// The operator's rules refuse the address of the endpoint; nothing was sent.
    AddressRefused,
    /// The controller's own identity was to be used and has no credentials.
    NoCredentials,
    /// The store does not implement the operation.
    NotImplemented,
    /// The store refuses the checksum headers that `checksums: Always` asks for.
    ChecksumsRefused,
    /// Too many requests.
    Throttled,
    /// An internal error of the store (5xx).
    ServerFault,
    /// No answer in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// No trusted authority has signed the certificate of the store.
    UntrustedCertificate,
    /// A body that is incomplete or not what was asked for.
    BadBody,
    /// A refusal of another kind; its code is in the detail.
    Refused,
}

impl S3Cause {
    /// Whether the same request may succeed when it is sent again.
    pub fn recovery(self) -> Recovery {
        match self {
            Self::Throttled
            | Self::ServerFault
            | Self::Timeout
            | Self::Connection
            | Self::BadBody => Recovery::Soon,
            Self::NoSuchBucket
            | Self::NoSuchKey
            | Self::NoSuchUpload
            | Self::AccessDenied
            | Self::InvalidAccessKey
            | Self::WrongSecret
            | Self::ExpiredToken
            | Self::ClockSkew
            | Self::WrongRegion
            | Self::Redirected
            | Self::AddressRefused
            | Self::NoCredentials
            | Self::NotImplemented
            | Self::ChecksumsRefused
            | Self::UntrustedCertificate
            | Self::Refused => Recovery::Later,
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
            Self::Redirected => "EndpointRedirects",
            Self::AddressRefused => "EndpointNotAllowed",
            Self::NoCredentials => "NoCredentials",
            Self::NotImplemented => "StorageLacksOperation",
            Self::ChecksumsRefused => "ChecksumsRefused",
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
    pub(super) fn explain(self, operation: S3Operation) -> Cow<'static, str> {
        let sentence = match self {
            Self::AccessDenied => {
                let right = operation.right();
                return format!("access denied: allow the access key {right} here").into();
            }
            Self::NoSuchBucket => "the bucket does not exist: create it, or correct its name",
            Self::NoSuchKey => {
                "the object does not exist: correct the path, or check whether it was deleted"
            }
            Self::NoSuchUpload => "the store has dropped the unfinished upload: start it again",
            Self::InvalidAccessKey => {
                "the store does not know the access key: correct accessKeyId in the credentials Secret"
            }
            Self::WrongSecret => {
                "the secret key does not belong to the access key: correct secretAccessKey in the credentials Secret"
            }
            Self::ExpiredToken => {
                "the session token is invalid or has expired: renew sessionToken in the credentials Secret"
            }
            Self::ClockSkew => {
                "the clocks of this Kubernetes node and of the store differ too much: set them"
            }
            Self::WrongRegion => "the bucket is in another region: correct region",
            Self::Redirected => {
                "the endpoint redirects to another address, and redirects are never followed: write that address as endpoint"
            }
            Self::AddressRefused => {
                "the operator does not allow this endpoint: use another one, or have its network added to --allowed-endpoint-networks"
            }
            Self::NoCredentials => {
                "the controller's own identity has no credentials: name a Secret in credentialsSecretRef, or give the controller's pod an identity"
            }
            Self::NotImplemented => "the store does not offer this operation",
            Self::ChecksumsRefused => {
                "the store refuses requests with CRC checksums: set checksums to Never"
            }
            Self::Throttled => "the store asks for fewer requests",
            Self::ServerFault => "the store has an internal problem",
            Self::Timeout => "the store did not answer in time",
            Self::Connection => {
                "the store cannot be reached or broke the connection: check the endpoint, DNS and network policies"
            }
            Self::UntrustedCertificate => {
                "the certificate of the store is not trusted: name the authority that signed it in caSecretRef"
            }
            Self::BadBody => "the answer of the store was damaged or not what was asked for",
            Self::Refused => "the store refused the request",
        };
        sentence.into()
    }
}
