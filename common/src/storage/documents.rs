//! The documents of a backup, manifest and indexes, as they come from the bucket.

use super::{
    digest::Sha256Digest,
    error::StorageError,
    index::ShardIndex,
    layout::{Layout, SCHEMA},
    manifest::{Manifest, ManifestError, ShardRecord},
    object_store::ObjectStore,
};
use serde::{Deserialize, de::DeserializeOwned};

/// The longest document that is read: the index of a shard of two terabytes.
const LONGEST_DOCUMENT: u64 = 64 << 20;

impl ObjectStore {
    /// Reads a JSON document; returns the value and the checksum of the document.
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
        let (index, checksum) = self.get_json(&layout.key(&record.index_object)).await?;
        record.check_index(&index, checksum)?;
        Ok(index)
    }

    /// Reads and proves a manifest; returns it and the checksum of the document. An error that [`StorageError::is_not_found`] means that
    /// there is no backup.
    pub async fn read_manifest(
        &self,
        layout: &Layout,
    ) -> Result<(Manifest, Sha256Digest), StorageError> {
        let key = layout.manifest();
        let document = self.get(&key, LONGEST_DOCUMENT).await?;
        let manifest = parse_manifest(&document).map_err(|error| match error {
            ParseError::Json(error) => self.damaged(&key, &error),
            ParseError::Manifest(error) => error.into(),
        })?;
        Ok((manifest, Sha256Digest::of(&document)))
    }

    fn damaged(&self, key: &str, error: &serde_json::Error) -> StorageError {
        StorageError::DamagedDocument {
            path: self.path(key).into(),
            what: error.to_string(),
        }
    }
}

enum ParseError {
    Json(serde_json::Error),
    Manifest(ManifestError),
}

/// The number of the format comes first: a document of a later version need not have today's fields.
fn parse_manifest(document: &[u8]) -> Result<Manifest, ParseError> {
    #[derive(Deserialize)]
    struct Format {
        schema: u32,
    }
    let format: Format = serde_json::from_slice(document).map_err(ParseError::Json)?;
    if format.schema != SCHEMA {
        let found = format.schema;
        return Err(ParseError::Manifest(ManifestError::Schema { found }));
    }
    let manifest: Manifest = serde_json::from_slice(document).map_err(ParseError::Json)?;
    manifest.validate().map_err(ParseError::Manifest)?;
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_format_is_refused_by_its_number() {
        let result = parse_manifest(br#"{"schema": 2, "somethingNew": []}"#);
        assert!(matches!(
            result,
            Err(ParseError::Manifest(ManifestError::Schema { found: 2 }))
        ));
        assert!(matches!(parse_manifest(b"{}"), Err(ParseError::Json(_))));
    }
}
