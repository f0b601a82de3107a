//! Deletes what a backup has stored. The manifest goes first: from then on there is no backup that a restore could trust.

use common::storage::{Layout, ObjectStore, S3Cause, StorageError};

/// Deletes the manifest, then everything below the backup's root, unfinished uploads at last. Gone already is fine, even the
/// whole bucket.
pub async fn delete(store: &ObjectStore, layout: &Layout) -> Result<(), StorageError> {
    match delete_all(store, layout).await {
        Err(error) if error.cause() == Some(S3Cause::NoSuchBucket) => Ok(()),
        result => result,
    }
}

async fn delete_all(store: &ObjectStore, layout: &Layout) -> Result<(), StorageError> {
    store.delete(&layout.manifest()).await?;
    let count = store.delete_prefix(layout.root()).await?;
    tracing::info!(root = layout.root(), count, "artifacts deleted");
    abort(store, layout.root()).await
}

/// Aborts unfinished uploads below a key or prefix. A store that cannot list them, or an access key that may not, is no failure:
/// then a rule of the bucket has to drop them.
pub async fn abort(store: &ObjectStore, prefix: &str) -> Result<(), StorageError> {
    let refusals = [S3Cause::AccessDenied, S3Cause::NotImplemented];
    match store.abort_uploads(prefix).await {
        Err(error) if error.cause().is_some_and(|cause| refusals.contains(&cause)) => {
            tracing::warn!(%error, "unfinished uploads may stay behind: give the bucket a rule that drops them");
            Ok(())
        }
        result => result.map(|_| ()),
    }
}
