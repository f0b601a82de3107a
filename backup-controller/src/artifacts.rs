//! Deletes what a backup has stored. The manifest goes first: from then on there is no backup that somebody could trust.

use common::storage::{Layout, ObjectStore, S3Cause, StorageError};

/// Deletes the manifest, then everything below the backup's root, unfinished uploads included. Gone already is fine, even the
/// whole bucket.
pub async fn delete(store: &ObjectStore, layout: &Layout) -> Result<(), StorageError> {
    match delete_all(store, layout).await {
        Err(error) if error.cause() == Some(S3Cause::NoSuchBucket) => Ok(()),
        result => result,
    }
}

async fn delete_all(store: &ObjectStore, layout: &Layout) -> Result<(), StorageError> {
    store.delete(&layout.manifest()).await?;
    abort(store, layout.root()).await?;
    let count = store.delete_prefix(layout.root()).await?;
    tracing::info!(root = layout.root(), count, "artifacts deleted");
    Ok(())
}

/// Aborts unfinished uploads below a key or prefix. Stores that cannot list them drop them by their own rules.
pub async fn abort(store: &ObjectStore, prefix: &str) -> Result<(), StorageError> {
    match store.abort_uploads(prefix).await {
        Err(error) if error.cause() == Some(S3Cause::NotImplemented) => Ok(()),
        result => result.map(|_| ()),
    }
}
