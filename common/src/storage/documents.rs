//! The documents of a backup, manifest and indexes, as they come from the bucket.

use super::{
    digest::Sha256Digest,
    error::StorageError,
    index::ShardIndex,
    layout::Layout,
    manifest::{Manifest, ManifestError, SCHEMA, ShardRecord},
    object_store::ObjectStore,
};
use serde::{Deserialize, de::DeserializeOwned};

/// The longest document that is read: the index of a shard of two terabytes.
const LONGEST_DOCUMENT: u64 = 64 << 20;

impl ObjectStore {
    /// Reads a JSON document; the value and the sum of the document.
    pub async fn get_json<T: DeserializeOwned>(
        &self,
        key: &str,
    ) -> Result<(T, Sha256Digest), StorageError> {
        let document = self.get(key, LONGEST_DOCUMENT).await?;
        let value = serde_json::from_slice(&document).map_err(|error| self.damaged(key, &error))?;
        Ok((value, Sha256Digest::of(&document)))
    }

    /// Reads the index of a shard and proves it against the manifest's record.
    pub async fn read_index(
        &self,
        layout: &Layout,
        record: &ShardRecord,
    ) -> Result<ShardIndex, StorageError> {
        let (index, sum) = self.get_json(&layout.key(&record.index_object)).await?;
        record.check_index(&index, sum)?;
        Ok(index)
    }

    /// Reads and proves a manifest; it and the sum of the document. An error that [`StorageError::is_not_found`] means that
    /// there is no backup.
    pub async fn read_manifest(
        &self,
        layout: &Layout,
    ) -> Result<(Manifest, Sha256Digest), StorageError> {
        let key = layout.manifest();
        let document = self.get(&key, LONGEST_DOCUMENT).await?;
        let manifest = parse_manifest(&document).map_err(|problem| match problem {
            Problem::Json(error) => self.damaged(&key, &error),
            Problem::Manifest(error) => error.into(),
        })?;
        Ok((manifest, Sha256Digest::of(&document)))
    }

    fn damaged(&self, key: &str, error: &serde_json::Error) -> StorageError {
        StorageError::DamagedDocument {
            place: self.place(key).into(),
            what: error.to_string(),
        }
    }
}

enum Problem {
    Json(serde_json::Error),
    Manifest(ManifestError),
}

/// The format's number is looked at first: what a later version wrote need not have today's fields.
fn parse_manifest(document: &[u8]) -> Result<Manifest, Problem> {
    #[derive(Deserialize)]
    struct Format {
        schema: u32,
    }
    let format: Format = serde_json::from_slice(document).map_err(Problem::Json)?;
    if format.schema != SCHEMA {
        let found = format.schema;
        return Err(Problem::Manifest(ManifestError::Schema { found }));
    }
    let manifest: Manifest = serde_json::from_slice(document).map_err(Problem::Json)?;
    manifest.validate().map_err(Problem::Manifest)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_format_is_refused_by_number_not_by_its_fields() {
        let result = parse_manifest(br#"{"schema": 2, "somethingNew": []}"#);
        assert!(matches!(
            result,
            Err(Problem::Manifest(ManifestError::Schema { found: 2 }))
        ));
        assert!(matches!(parse_manifest(b"{}"), Err(Problem::Json(_))));
    }
}
