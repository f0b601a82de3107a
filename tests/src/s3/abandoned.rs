//! What a killed process leaves in a bucket.

use anyhow::Result;
use bytes::BytesMut;
use common::storage::{ObjectStore, location::SMALLEST_PART, upload::MultipartUpload};

/// Leaves an unfinished upload of one part behind.
pub async fn leave_upload(store: &ObjectStore, key: &str) -> Result<()> {
    let part = BytesMut::zeroed(usize::try_from(SMALLEST_PART)?);
    let mut upload = MultipartUpload::new(store.clone(), key.to_owned(), part.len());
    upload.send(part).await?;
    upload.arrival().await?;
    std::mem::forget(upload);
    Ok(())
}
