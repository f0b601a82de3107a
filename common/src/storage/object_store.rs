//! Requests to one bucket. Each has a timeout and is retried where that can help; each error names bucket, key, endpoint,
//! cause and cure.

use super::{
    cause::S3Cause,
    classify::{Asked, classify, remark, root_cause},
    client::{ATTEMPT, StoreAccess, StoreIdentity, client},
    error::{S3Path, StorageError},
    location::{Credentials, Location},
    operation::S3Operation,
    retry::{Retry, STANDARD, retrying},
};
use aws_sdk_s3::{
    Client,
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    primitives::ByteStream,
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use std::{error::Error, fmt, sync::Arc};
use tokio::time::timeout;

/// How many objects are deleted at the same time. One request each, because deleting in batches needs a checksum that
/// several stores refuse.
const PARALLEL_DELETES: usize = 8;

/// A bucket and the right to use it. Cheap to clone.
#[derive(Clone)]
pub struct ObjectStore {
    pub(crate) client: Client,
    location: Arc<Location>,
    credentials: Option<Arc<Credentials>>,
}

/// An object as a listing or a HEAD shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Key.
    pub key: String,
    /// Length in bytes.
    pub bytes: u64,
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore")
            .field("location", &self.location)
            .finish_non_exhaustive()
    }
}

impl ObjectStore {
    /// Prepares requests; sends none (see [`Self::probe`]).
    pub async fn connect(location: Location, access: StoreAccess) -> Self {
        let client = client(&location, &access).await;
        let credentials = match access.identity {
            StoreIdentity::AccessKey(credentials) => Some(Arc::new(credentials)),
            StoreIdentity::Ambient => None,
        };
        Self {
            client,
            location: Arc::new(location),
            credentials,
        }
    }

    /// Where the bucket is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// The path of a key, for errors.
    pub(crate) fn path(&self, key: &str) -> S3Path {
        S3Path {
            bucket: self.location.bucket().to_owned(),
            key: key.to_owned(),
            endpoint: self.location.endpoint().map(ToOwned::to_owned),
        }
    }

    /// An error of the client as one of ours.
    pub(crate) fn failure<E>(
        &self,
        operation: S3Operation,
        key: &str,
        error: &SdkError<E, HttpResponse>,
    ) -> StorageError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        let asked = Asked {
            operation,
            has_endpoint: self.location.endpoint().is_some(),
            checksums: self.location.checksums(),
        };
        let (cause, detail) = classify(error, asked);
        self.error(operation, key, cause, &detail)
    }

    pub(crate) fn error(
        &self,
        operation: S3Operation,
        key: &str,
        cause: S3Cause,
        detail: &str,
    ) -> StorageError {
        StorageError::Request {
            operation,
            path: self.path(key).into(),
            cause,
            detail: remark(detail, self.credentials.as_deref()),
        }
    }

    pub(crate) async fn request<T, Attempt>(
        &self,
        policy: Retry,
        operation: S3Operation,
        key: &str,
        attempt: impl FnMut() -> Attempt,
    ) -> Result<T, StorageError>
    where
        Attempt: Future<Output = Result<T, StorageError>>,
    {
        let out_of_time = |last: Option<StorageError>| {
            last.unwrap_or_else(|| self.error(operation, key, S3Cause::Timeout, ""))
        };
        retrying(policy, out_of_time, attempt).await
    }

    /// Proves that the bucket is there and that objects may be listed and written below this prefix, leaving nothing behind:
    /// one listing, one multipart upload that is aborted.
    pub async fn probe(&self, prefix: &str) -> Result<(), StorageError> {
        self.list(prefix, 1).await?;
        let key = format!("{prefix}.probe");
        let operation = S3Operation::Write;
        let upload = self
            .request(STANDARD, operation, &key, || async {
                let answer = self.client.create_multipart_upload();
                let answer = answer.bucket(self.location.bucket()).key(&key).send().await;
                answer.map_err(|error| self.failure(operation, &key, &error))
            })
            .await?;
        self.abort_upload(&key, upload.upload_id().unwrap_or_default())
            .await
    }

    /// Writes a complete object, replacing what was there.
    pub async fn put(
        &self,
        key: &str,
        body: Bytes,
        content_type: &str,
    ) -> Result<(), StorageError> {
        let operation = S3Operation::Write;
        self.request(STANDARD, operation, key, || async {
            let request = self
                .client
                .put_object()
                .bucket(self.location.bucket())
                .key(key)
                .content_type(content_type)
                .body(ByteStream::from(body.clone()));
            let answer = if self.location.encrypted() {
                // TLS already protects the body: this saves a second SHA-256 of it.
                request.customize().disable_payload_signing().send().await
            } else {
                request.send().await
            };
            answer.map_err(|error| self.failure(operation, key, &error))?;
            Ok(())
        })
        .await
    }

    /// Reads a complete object, which may have `limit` bytes at most.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Bytes, StorageError> {
        self.request(STANDARD, S3Operation::Read, key, || async {
            let request = self.client.get_object();
            let answer = request.bucket(self.location.bucket()).key(key).send().await;
            let answer = answer.map_err(|error| self.failure(S3Operation::Read, key, &error))?;
            let length = answer.content_length().and_then(|n| u64::try_from(n).ok());
            self.collect(key, answer.body, length, limit).await
        })
        .await
    }

    /// Reads `length` bytes from `start` on; fewer are an error.
    pub async fn get_range(
        &self,
        key: &str,
        start: u64,
        length: u64,
    ) -> Result<Bytes, StorageError> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let range = format!("bytes={start}-{}", start.saturating_add(length - 1));
        self.request(STANDARD, S3Operation::Read, key, || async {
            let request = self.client.get_object().range(range.clone());
            let answer = request.bucket(self.location.bucket()).key(key).send().await;
            let answer = answer.map_err(|error| self.failure(S3Operation::Read, key, &error))?;
            self.collect(key, answer.body, Some(length), length).await
        })
        .await
    }

    /// Reads a body, `length` bytes if that is known, never more than `limit`.
    async fn collect(
        &self,
        key: &str,
        mut body: ByteStream,
        length: Option<u64>,
        limit: u64,
    ) -> Result<Bytes, StorageError> {
        let bad = |what: &str| self.error(S3Operation::Read, key, S3Cause::BadBody, what);
        let too_long = || {
            self.error(
                S3Operation::Read,
                key,
                S3Cause::Refused,
                "it is longer than expected",
            )
        };
        let room = length.unwrap_or(0);
        if room > limit {
            return Err(too_long());
        }
        let room = usize::try_from(room).map_err(|_| too_long())?;
        let mut bytes = BytesMut::with_capacity(room);
        while let Some(piece) = timeout(ATTEMPT, body.next())
            .await
            .map_err(|_| self.error(S3Operation::Read, key, S3Cause::Timeout, "the body stalled"))?
        {
            let piece = piece.map_err(|error| {
                self.error(
                    S3Operation::Read,
                    key,
                    S3Cause::Connection,
                    &root_cause(&error),
                )
            })?;
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&piece);
        }
        match length {
            Some(length) if length != bytes.len() as u64 => {
                Err(bad(&format!("{} of {length} bytes came", bytes.len())))
            }
            _ => Ok(bytes.freeze()),
        }
    }

    /// The length of an object, if it exists.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectInfo>, StorageError> {
        match self
            .request(STANDARD, S3Operation::Head, key, || self.look(key))
            .await
        {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One try of [`Self::head`].
    pub(crate) async fn look(&self, key: &str) -> Result<ObjectInfo, StorageError> {
        let request = self.client.head_object();
        let answer = request.bucket(self.location.bucket()).key(key).send().await;
        let answer = answer.map_err(|error| self.failure(S3Operation::Head, key, &error))?;
        Ok(ObjectInfo {
            key: key.to_owned(),
            bytes: length(answer.content_length),
        })
    }

    /// Lists objects below a prefix in the order of their keys, `limit` at most.
    pub async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<ObjectInfo>, StorageError> {
        let mut found = Vec::new();
        let mut token: Option<String> = None;
        while found.len() < limit {
            let page = i32::try_from(limit - found.len()).map_or(1000, |rest| rest.min(1000));
            let answer = self
                .request(STANDARD, S3Operation::List, prefix, || async {
                    let request = self
                        .client
                        .list_objects_v2()
                        .bucket(self.location.bucket())
                        .prefix(prefix)
                        .max_keys(page)
                        .set_continuation_token(token.clone());
                    let answer = request.send().await;
                    answer.map_err(|error| self.failure(S3Operation::List, prefix, &error))
                })
                .await?;
            found.extend(answer.contents.into_iter().flatten().filter_map(|object| {
                Some(ObjectInfo {
                    key: object.key?,
                    bytes: length(object.size),
                })
            }));
            token = answer.next_continuation_token;
            if token.is_none() {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Deletes an object; one that is not there is fine.
    pub async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let result = self
            .request(STANDARD, S3Operation::Delete, key, || async {
                let request = self.client.delete_object();
                let answer = request.bucket(self.location.bucket()).key(key).send().await;
                answer.map_err(|error| self.failure(S3Operation::Delete, key, &error))
            })
            .await;
        match result {
            Err(error) if !error.is_not_found() => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Deletes everything below a prefix and returns the number of objects. The prefix has to end in a slash, so that it can
    /// mean neither a complete bucket nor a neighbour with a longer name.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64, StorageError> {
        if prefix.trim_matches('/').is_empty() || !prefix.ends_with('/') {
            let what = "only what is below a directory can be deleted";
            return Err(self.error(S3Operation::Delete, prefix, S3Cause::Refused, what));
        }
        let mut deleted = 0;
        let mut previous = Vec::new();
        loop {
            let page = self.list(prefix, 1000).await?;
            if page.is_empty() {
                return Ok(deleted);
            }
            if page == previous {
                let what = "objects stay in the listing after they were deleted";
                return Err(self.error(S3Operation::Delete, prefix, S3Cause::Refused, what));
            }
            previous.clone_from(&page);
            deleted += page.len() as u64;
            stream::iter(page)
                .map(|object| async move { self.delete(&object.key).await })
                .buffer_unordered(PARALLEL_DELETES)
                .try_collect::<()>()
                .await?;
        }
    }

    /// Aborts unfinished multipart uploads below a prefix and returns their number. A store that cannot list them
    /// (501 or 405) has them cleaned by a lifecycle rule or not at all: not an error.
    pub async fn abort_uploads(&self, prefix: &str) -> Result<u64, StorageError> {
        let mut aborted = 0;
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let answer = self
                .request(STANDARD, S3Operation::ListUploads, prefix, || async {
                    let request = self
                        .client
                        .list_multipart_uploads()
                        .bucket(self.location.bucket())
                        .prefix(prefix)
                        .set_key_marker(key_marker.clone())
                        .set_upload_id_marker(id_marker.clone());
                    let operation = S3Operation::ListUploads;
                    let answer = request.send().await;
                    answer.map_err(|error| self.failure(operation, prefix, &error))
                })
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if error.cause() == Some(S3Cause::NotImplemented) => return Ok(aborted),
                Err(error) => return Err(error),
            };
            for upload in answer.uploads() {
                if let (Some(key), Some(id)) = (upload.key(), upload.upload_id()) {
                    self.abort_upload(key, id).await?;
                    aborted += 1;
                }
            }
            if answer.is_truncated != Some(true) || answer.next_key_marker.is_none() {
                return Ok(aborted);
            }
            (key_marker, id_marker) = (answer.next_key_marker, answer.next_upload_id_marker);
        }
    }

    /// Aborts one multipart upload; one that is gone is fine.
    pub(crate) async fn abort_upload(&self, key: &str, id: &str) -> Result<(), StorageError> {
        let operation = S3Operation::AbortUpload;
        let result = self
            .request(STANDARD, operation, key, || async {
                let request = self.client.abort_multipart_upload().upload_id(id);
                let answer = request.bucket(self.location.bucket()).key(key).send().await;
                answer.map_err(|error| self.failure(operation, key, &error))
            })
            .await;
        match result {
            Err(error)
                if !matches!(
                    error.cause(),
                    Some(S3Cause::NoSuchUpload | S3Cause::NoSuchKey)
                ) =>
            {
                Err(error)
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}

fn length(bytes: Option<i64>) -> u64 {
    bytes
        .and_then(|bytes| u64::try_from(bytes).ok())
        .unwrap_or(0)
}
