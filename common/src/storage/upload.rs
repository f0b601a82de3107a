//! The upload of one object: a single PUT if it fits into a part, else parts of one fixed size (some stores demand equal
//! parts), at most two at the same time, each a buffer of its own with a known length.

use super::{
    cause::S3Cause,
    client::patient,
    error::StorageError,
    location::{LARGEST_PART, SMALLEST_PART},
    object_store::ObjectStore,
    operation::S3Operation,
    pool::WorkCancelled,
    retry::{COMPLETION, STANDARD, retrying},
};
use crate::errors::Recovery;
use aws_sdk_s3::{
    primitives::ByteStream,
    types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart},
};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use std::time::Duration;
use tokio::{runtime::Handle, task::JoinSet, time::timeout};

/// Parts in flight at the same time.
pub const PARALLEL_PARTS: usize = 2;
/// The smallest part that is chosen for data of unknown size.
pub const DEFAULT_PART: usize = 8 << 20;
/// S3 takes this many parts.
const MOST_PARTS: i32 = 10_000;
/// How long the abort of an upload may take.
const ABORT_LIMIT: Duration = Duration::from_secs(10);
/// How long parts in flight may take to arrive before the upload is aborted.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(3);

/// Parts in flight: what the store answered, and the buffer to reuse.
type Parts = JoinSet<Result<(CompletedPart, Bytes), StorageError>>;

/// The part size for a shard of this memory use: such that 9,000 parts hold a quarter more, a power of two, 8 MiB at least.
/// Streams are smaller than the memory they come from, practically always.
pub fn part_size_for(used_memory: u64) -> usize {
    let needed = (used_memory / 4).saturating_add(used_memory).div_ceil(9000);
    let size = needed
        .clamp(DEFAULT_PART as u64, LARGEST_PART)
        .next_power_of_two();
    usize::try_from(size).unwrap_or(DEFAULT_PART)
}

/// An object that is being uploaded. Ends with [`Self::complete`] or [`Self::abort`]; one that is dropped before sends its
/// abort from a task of its own, bounded to some seconds.
#[derive(Debug)]
pub struct MultipartUpload {
    store: ObjectStore,
    key: String,
    part_size: usize,
    /// Set once the first full part is there.
    id: Option<String>,
    next_number: i32,
    in_flight: Parts,
    stored: Vec<CompletedPart>,
    bytes: u64,
    /// Buffers that came back while [`Self::send`] waited.
    spare: Vec<BytesMut>,
}

impl MultipartUpload {
    /// Begins; asks no server yet. Part sizes outside of what S3 takes are moved to the nearest.
    pub fn new(store: ObjectStore, key: String, part_size: usize) -> Self {
        let smallest = usize::try_from(SMALLEST_PART).unwrap_or(DEFAULT_PART);
        Self {
            store,
            key,
            part_size: part_size.max(smallest),
            id: None,
            next_number: 1,
            in_flight: JoinSet::new(),
            stored: Vec::new(),
            bytes: 0,
            spare: Vec::new(),
        }
    }

    /// Key of the object.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Bytes of every part but the last.
    pub fn part_size(&self) -> usize {
        self.part_size
    }

    /// Parts that the store has not accepted yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Bytes that the store has taken.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// An empty buffer of part size: one that came back while [`Self::send`] waited, or a new one.
    pub fn buffer(&mut self) -> BytesMut {
        let new = || BytesMut::with_capacity(self.part_size);
        self.spare.pop().unwrap_or_else(new)
    }

    /// Sends a full part. Returns when it is in flight, which is when fewer than [`PARALLEL_PARTS`] are; to keep the buffers of
    /// those that arrive, wait with [`Self::arrival`] before.
    pub async fn send(&mut self, part: BytesMut) -> Result<(), StorageError> {
        let id = self.begin().await?;
        while self.in_flight.len() >= PARALLEL_PARTS {
            let buffer = self.arrival().await?;
            self.spare.extend(buffer);
        }
        if self.next_number > MOST_PARTS {
            return Err(StorageError::TooManyParts {
                path: self.store.path(&self.key).into(),
                part_size: self.part_size,
            });
        }
        let (store, key, number) = (self.store.clone(), self.key.clone(), self.next_number);
        self.next_number += 1;
        let body = part.freeze();
        self.in_flight.spawn(async move {
            let done = upload_part(&store, &key, &id, number, &body).await?;
            Ok((done, body))
        });
        Ok(())
    }

    async fn begin(&mut self) -> Result<String, StorageError> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        // Boxed without its type: nested in everything that writes, the client's own would be too deep for the compiler.
        let id = self.store.create_upload(&self.key).boxed().await?;
        self.id = Some(id.clone());
        Ok(id)
    }

    /// Waits for one part to arrive and gives its buffer back, empty. `None`: no part is in flight, or the client still holds the
    /// bytes for a moment.
    pub async fn arrival(&mut self) -> Result<Option<BytesMut>, StorageError> {
        let Some(ended) = self.in_flight.join_next().await else {
            return Ok(None);
        };
        let (part, body) = ended.map_err(|_| WorkCancelled)??;
        self.bytes += body.len() as u64;
        self.stored.push(part);
        let mut buffer = body.try_into_mut().ok();
        if let Some(buffer) = &mut buffer {
            buffer.clear();
        }
        Ok(buffer)
    }

    /// Sends what is left (it may be empty if nothing was sent before) and completes the object. After an error, or if the
    /// future was dropped midway, the caller has to [`Self::abort`].
    pub async fn complete(&mut self, last: BytesMut) -> Result<(), StorageError> {
        if self.id.is_none() {
            let body = last.freeze();
            let length = body.len() as u64;
            let put = self.store.put(&self.key, body, "application/octet-stream");
            put.await?;
            self.bytes = length;
            return Ok(());
        }
        if !last.is_empty() {
            self.send(last).await?;
        }
        while !self.in_flight.is_empty() {
            self.arrival().await?;
        }
        let id = self.begin().await?;
        let mut parts = std::mem::take(&mut self.stored);
        parts.sort_unstable_by_key(|part| part.part_number);
        self.store
            .complete_upload(&self.key, &id, parts, self.bytes)
            .await?;
        self.id = None;
        Ok(())
    }

    /// Has the store drop the parts that it has. A store that cannot be reached keeps them until the next sweep; that is
    /// logged, not an error.
    pub async fn abort(mut self) {
        let in_flight = std::mem::take(&mut self.in_flight);
        if let Some(id) = self.id.take() {
            give_up(&self.store, &self.key, &id, in_flight).await;
        }
    }
}

impl Drop for MultipartUpload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), Handle::try_current()) else {
            return;
        };
        let in_flight = std::mem::take(&mut self.in_flight);
        let (store, key) = (self.store.clone(), std::mem::take(&mut self.key));
        runtime.spawn(async move { give_up(&store, &key, &id, in_flight).await });
    }
}

/// Lets the parts arrive first, if they do so soon: a store may keep a part that arrives after the abort for ever.
async fn give_up(store: &ObjectStore, key: &str, id: &str, mut in_flight: Parts) {
    let arrivals = async { while in_flight.join_next().await.is_some() {} };
    if timeout(ARRIVAL_LIMIT, arrivals).await.is_err() {
        in_flight.shutdown().await;
    }
    match timeout(ABORT_LIMIT, store.abort_upload(key, id)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "an unfinished upload stays behind"),
        Err(_) => tracing::warn!(
            key,
            "an unfinished upload stays behind: no answer to its abort"
        ),
    }
}

/// Uploads one part; tried again while its problems are transient, for at most the time that a data source may be held.
async fn upload_part(
    store: &ObjectStore,
    key: &str,
    id: &str,
    number: i32,
    body: &Bytes,
) -> Result<CompletedPart, StorageError> {
    let operation = S3Operation::UploadPart;
    let stalled = |last: Option<StorageError>| StorageError::Stalled {
        path: store.path(key).into(),
        waited: STANDARD.limit,
        last: match last {
            Some(StorageError::Request { cause, detail, .. }) => {
                format!("{} {detail}", cause.reason())
            }
            Some(error) => error.to_string(),
            None => "no answer".to_owned(),
        },
    };
    retrying(STANDARD, stalled, || async {
        let request = store
            .client
            .upload_part()
            .bucket(store.location().bucket())
            .key(key)
            .upload_id(id)
            .part_number(number)
            .body(ByteStream::from(body.clone()));
        let answer = if store.location().encrypted() {
            // TLS already protects the body: this saves a second SHA-256 of it.
            request.customize().disable_payload_signing().send().await
        } else {
            request.send().await
        };
        let answer = answer.map_err(|error| store.failure(operation, key, &error))?;
        Ok(CompletedPart::builder()
            .part_number(number)
            .set_e_tag(answer.e_tag)
            .set_checksum_crc32(answer.checksum_crc32)
            .build())
    })
    .await
}

impl ObjectStore {
    async fn create_upload(&self, key: &str) -> Result<String, StorageError> {
        let operation = S3Operation::BeginUpload;
        self.request(STANDARD, operation, key, || async {
            // AWS takes only parts with checksums of the algorithm that their upload was begun with.
            let checksums = self.location().checksums();
            let request = self
                .client
                .create_multipart_upload()
                .set_checksum_algorithm(checksums.then_some(ChecksumAlgorithm::Crc32))
                .content_type("application/octet-stream");
            let answer = request.bucket(self.location().bucket()).key(key).send();
            let answer = answer
                .await
                .map_err(|error| self.failure(operation, key, &error))?;
            answer.upload_id.ok_or_else(|| {
                self.error(
                    operation,
                    key,
                    S3Cause::BadBody,
                    "the answer has no upload id",
                )
            })
        })
        .await
    }

    /// Has the store make the object of its parts. It may take minutes, and its answer may get lost although the store did it:
    /// the next try then finds no upload, which some stores report as a missing right. So after every try that may have
    /// succeeded, the object's length decides. No other writer uses its key.
    async fn complete_upload(
        &self,
        key: &str,
        id: &str,
        parts: Vec<CompletedPart>,
        bytes: u64,
    ) -> Result<(), StorageError> {
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        self.request(COMPLETION, COMPLETE, key, || async {
            let error = match Box::pin(self.complete_once(key, id, parts.clone())).await {
                Err(error) if may_be_complete(&error) => error,
                result => return result,
            };
            match Box::pin(self.look(key)).await {
                Ok(object) if object.bytes == bytes => Ok(()),
                Ok(_) | Err(_) => Err(error),
            }
        })
        .await
    }

    async fn complete_once(
        &self,
        key: &str,
        id: &str,
        parts: CompletedMultipartUpload,
    ) -> Result<(), StorageError> {
        let request = self
            .client
            .complete_multipart_upload()
            .bucket(self.location().bucket())
            .key(key)
            .upload_id(id)
            .multipart_upload(parts);
        let answer = request.customize().config_override(patient()).send().await;
        answer.map_err(|error| self.failure(COMPLETE, key, &error))?;
        Ok(())
    }
}

const COMPLETE: S3Operation = S3Operation::CompleteUpload;

/// Whether the store may have completed the upload although the request ended with this.
fn may_be_complete(error: &StorageError) -> bool {
    let gone = [S3Cause::NoSuchUpload, S3Cause::AccessDenied];
    error.recovery() == Recovery::Soon || error.cause().is_some_and(|cause| gone.contains(&cause))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn part_sizes_of_known_shards() {
        let gib = 1 << 30;
        assert_eq!(part_size_for(0), 8 << 20);
        assert_eq!(part_size_for(50 * gib), 8 << 20);
        assert_eq!(part_size_for(100 * gib), 16 << 20);
        assert_eq!(part_size_for(450 * gib), 64 << 20);
        assert_eq!(part_size_for(u64::MAX), 1 << 30);
    }

    proptest! {
        #[test]
        fn parts_are_always_enough(used in 0_u64..1 << 42) {
            let size = part_size_for(used) as u64;
            prop_assert!(size.is_power_of_two());
            prop_assert!(used + used / 4 <= size * 9000);
            prop_assert!(size == 8 << 20 || used + used / 4 > size / 2 * 9000);
        }
    }
}
