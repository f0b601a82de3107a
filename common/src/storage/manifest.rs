//! The manifest: the document that makes stored objects a backup. Written last, read first.

use super::{
    codec::Compression,
    digest::Sha256Digest,
    index::ShardIndex,
    layout::{BackupId, SCHEMA, is_plain_name},
};
use crate::cluster::slots::{SlotRange, SlotSet};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One complete backup of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of this format: [`SCHEMA`].
    pub schema: u32,
    /// Identity of the backup.
    pub backup_id: BackupId,
    /// Version of the program that wrote it.
    pub tool_version: String,
    /// Namespace of the cluster.
    pub namespace: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Uid of the cluster's resource.
    pub cluster_uid: String,
    /// When the backup began.
    pub created_at: Timestamp,
    /// When its last object was stored.
    pub finished_at: Timestamp,
    /// Server family: `redis` or `valkey`.
    pub flavour: String,
    /// Version of the server.
    pub redis_version: String,
    /// Version of the RDB format, the highest of the shards.
    pub rdb_version: u32,
    /// Hash of the slot map, which was the same before and after the forks.
    pub topology_hash: String,
    /// Time between the first and the last fork, in milliseconds.
    pub snapshot_skew_ms: u64,
    /// How the shards are stored.
    pub compression: Compression,
    /// Libraries of functions, if they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub functions: Option<u64>,
    /// Totals over the shards.
    pub totals: Totals,
    /// The shards, by number.
    pub shards: Vec<ShardRecord>,
}

/// One stored shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShardRecord {
    /// Number of the shard in the backup, from 0.
    pub index: u32,
    /// Id of the node that was the source.
    pub node_id: String,
    /// What that node was: `replica` or `primary`.
    pub role: CapturedRole,
    /// Slots of the shard.
    pub slots: Vec<SlotRange>,
    /// Name of the object, relative to the backup's root.
    pub object: String,
    /// Name of its index, relative to the backup's root.
    pub index_object: String,
    /// SHA-256 of the index document.
    pub index_sha256: Sha256Digest,
    /// Length of the object in bytes.
    pub stored_bytes: u64,
    /// Length of the raw stream in bytes.
    pub raw_bytes: u64,
    /// Keys, if every record could be walked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Keys that expire, if every record could be walked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// SHA-256 of the object.
    pub sha256: Sha256Digest,
    /// CRC-64 at the end of the stream, 16 hex digits, or `disabled` by the server's configuration.
    pub crc64: String,
    /// Replication id of the stream.
    pub replid: String,
    /// Replication offset of the fork.
    pub offset: u64,
    /// When the fork was.
    pub forked_at: Timestamp,
}

/// What a source node was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CapturedRole {
    /// A replica of the shard.
    Replica,
    /// The shard's primary.
    Primary,
}

/// Totals over the shards of a backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Shards.
    pub shards: u32,
    /// Bytes in the bucket, indexes and manifest left out.
    pub stored_bytes: u64,
    /// Bytes of the raw streams.
    pub raw_bytes: u64,
    /// Keys; absent if one shard's are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<u64>,
    /// Keys that expire; absent if one shard's are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

impl Totals {
    /// Adds the shards up.
    pub fn of(shards: &[ShardRecord]) -> Self {
        Self {
            shards: u32::try_from(shards.len()).unwrap_or(u32::MAX),
            stored_bytes: shards.iter().map(|shard| shard.stored_bytes).sum(),
            raw_bytes: shards.iter().map(|shard| shard.raw_bytes).sum(),
            keys: shards.iter().map(|shard| shard.keys).sum(),
            expires: shards.iter().map(|shard| shard.expires).sum(),
        }
    }
}

/// Why a manifest is not that of a complete backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A later version wrote it.
    #[error(
        "the manifest has format {found}, this version reads {SCHEMA}: use the version that wrote it"
    )]
    Schema {
        /// Format of the manifest.
        found: u32,
    },
    /// It lists no shard.
    #[error("the manifest lists no shard")]
    NoShards,
    /// Shards are not numbered 0, 1, 2 and so on.
    #[error("shard {found} stands in the manifest where shard {expected} belongs")]
    Order {
        /// Number that belongs there.
        expected: u32,
        /// Number that stands there.
        found: u32,
    },
    /// A shard names an object outside of the backup.
    #[error("shard {shard} names the object {name:?}, which is not a plain name")]
    Name {
        /// Number of the shard.
        shard: u32,
        /// The name as the manifest writes it.
        name: String,
    },
    /// Two shards hold the same slots.
    #[error("shard {shard} holds slots {slots} that an earlier shard holds too")]
    Overlap {
        /// Number of the later shard.
        shard: u32,
        /// Ranges that two shards claim.
        slots: String,
    },
    /// Slots are in no shard.
    #[error("the backup is incomplete: slots {slots} are in none of its shards")]
    Missing {
        /// Ranges that no shard has.
        slots: String,
    },
    /// The totals are not the sums of the shards.
    #[error("the totals of the manifest are not the sums of its shards")]
    Totals,
    /// The CRC-64 is neither a checksum nor `disabled`.
    #[error("shard {shard} has the CRC-64 {found:?}, which is not 16 hex digits or \"disabled\"")]
    Crc {
        /// Number of the shard.
        shard: u32,
        /// What stands there.
        found: String,
    },
    /// An index is not the one that the manifest names.
    #[error("the index of shard {shard} does not fit the manifest: {what}")]
    Index {
        /// Number of the shard.
        shard: u32,
        /// What differs.
        what: String,
    },
}

/// `crc64` of a shard whose server has checksums off.
pub const CRC_DISABLED: &str = "disabled";

impl Manifest {
    /// Proves that the shards hold every slot exactly once and that the records fit each other.
    pub fn validate(&self) -> Result<(), ManifestError> {
        if self.schema != SCHEMA {
            return Err(ManifestError::Schema { found: self.schema });
        }
        if self.shards.is_empty() {
            return Err(ManifestError::NoShards);
        }
        let mut covered = SlotSet::new();
        for (expected, shard) in (0..).zip(&self.shards) {
            shard.validate(expected)?;
            add_slots(&mut covered, shard)?;
        }
        if !covered.is_full() {
            return Err(ManifestError::Missing {
                slots: covered.missing().to_string(),
            });
        }
        if self.totals != Totals::of(&self.shards) {
            return Err(ManifestError::Totals);
        }
        Ok(())
    }
}

/// One range at a time, so that a slot that one shard lists twice is found as well.
fn add_slots(covered: &mut SlotSet, shard: &ShardRecord) -> Result<(), ManifestError> {
    for &range in &shard.slots {
        let both = covered.intersection(&SlotSet::from(range));
        if !both.is_empty() {
            return Err(ManifestError::Overlap {
                shard: shard.index,
                slots: both.to_string(),
            });
        }
        covered.insert_range(range);
    }
    Ok(())
}

impl ShardRecord {
    fn validate(&self, expected: u32) -> Result<(), ManifestError> {
        let shard = self.index;
        if shard != expected {
            return Err(ManifestError::Order {
                expected,
                found: shard,
            });
        }
        for name in [&self.object, &self.index_object] {
            if !is_plain_name(name) {
                let name = name.clone();
                return Err(ManifestError::Name { shard, name });
            }
        }
        let is_crc = self.crc64.len() == 16 && self.crc64.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_crc && self.crc64 != CRC_DISABLED {
            let found = self.crc64.chars().take(40).collect();
            return Err(ManifestError::Crc { shard, found });
        }
        Ok(())
    }

    /// Proves that an index document is the one this record names: its checksum, what it says of the object, and that its
    /// blocks are complete.
    pub fn check_index(
        &self,
        index: &ShardIndex,
        document: Sha256Digest,
    ) -> Result<(), ManifestError> {
        let wrong = |what: &str| {
            Err(ManifestError::Index {
                shard: self.index,
                what: what.to_owned(),
            })
        };
        if document != self.index_sha256 {
            return wrong("its SHA-256 is another");
        }
        if index.shard != self.index || index.object != self.object {
            return wrong("it describes another object");
        }
        if index.sha256 != self.sha256 {
            return wrong("it names another SHA-256 of the object");
        }
        if (index.raw_bytes, index.stored_bytes) != (self.raw_bytes, self.stored_bytes) {
            return wrong("it names another length of the object");
        }
        if (index.keys(), index.expires()) != (self.keys, self.expires) {
            return wrong("it counts other keys");
        }
        index.validate().or_else(|what| wrong(&what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{
        block::{BLOCK_BYTES, BlockEntry},
        index::SlotCount,
    };

    fn shard(index: u32, slots: &[&str]) -> ShardRecord {
        ShardRecord {
            index,
            node_id: "07c37dfeb235213a872192d90877d0cd55635b91".to_owned(),
            role: CapturedRole::Replica,
            slots: slots.iter().map(|range| range.parse().unwrap()).collect(),
            object: format!("shard-{index:04}-a1.rdb.gz"),
            index_object: format!("shard-{index:04}-a1.json"),
            index_sha256: Sha256Digest::of(b"index"),
            stored_bytes: 50,
            raw_bytes: 100,
            keys: Some(7),
            expires: Some(2),
            sha256: Sha256Digest::of(b"object"),
            crc64: "0123456789abcdef".to_owned(),
            replid: "8371445ee5e2a2e4f9a9f8c8c1d2a1e0b7d6c5f4".to_owned(),
            offset: 12_345,
            forked_at: "2026-11-21T00:30:01Z".parse().unwrap(),
        }
    }

    fn manifest(shards: Vec<ShardRecord>) -> Manifest {
        Manifest {
            schema: SCHEMA,
            backup_id: "20261121t003000z-3f9c2a10".parse().unwrap(),
            tool_version: "0.1.0".to_owned(),
            namespace: "shop".to_owned(),
            cluster: "cart".to_owned(),
            cluster_uid: "uid".to_owned(),
            created_at: "2026-11-21T00:30:00Z".parse().unwrap(),
            finished_at: "2026-11-21T00:31:00Z".parse().unwrap(),
            flavour: "redis".to_owned(),
            redis_version: "7.0.15".to_owned(),
            rdb_version: 10,
            topology_hash: "v1-00".to_owned(),
            snapshot_skew_ms: 12,
            compression: Compression::default(),
            functions: Some(0),
            totals: Totals::of(&shards),
            shards,
        }
    }

    fn complete() -> Manifest {
        manifest(vec![
            shard(0, &["0-5460"]),
            shard(1, &["5461-10922", "16383"]),
            shard(2, &["10923-16382"]),
        ])
    }

    #[test]
    fn a_complete_manifest_is_accepted_and_survives_json() {
        let manifest = complete();
        manifest.validate().unwrap();
        assert_eq!(manifest.totals.keys, Some(21));
        let json = serde_json::to_string(&manifest).unwrap();
        assert!(
            json.contains(r#""createdAt":"2026-11-21T00:30:00Z""#),
            "{json}"
        );
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn missing_and_double_slots_are_named() {
        let missing = manifest(vec![shard(0, &["0-5460"]), shard(1, &["5462-16383"])]);
        let slots = "5461".to_owned();
        assert_eq!(missing.validate(), Err(ManifestError::Missing { slots }));
        let double = manifest(vec![shard(0, &["0-5461"]), shard(1, &["5461-16383"])]);
        let slots = "5461".to_owned();
        assert_eq!(
            double.validate(),
            Err(ManifestError::Overlap { shard: 1, slots })
        );
        let twice = manifest(vec![shard(0, &["0-16383", "3-4"])]);
        assert!(matches!(
            twice.validate(),
            Err(ManifestError::Overlap { shard: 0, .. })
        ));
        assert_eq!(manifest(vec![]).validate(), Err(ManifestError::NoShards));
    }

    #[test]
    fn records_that_contradict_are_refused() {
        let change = |change: fn(&mut Manifest)| {
            let mut manifest = complete();
            change(&mut manifest);
            manifest.validate().unwrap_err()
        };
        let error = change(|manifest| manifest.schema = 2);
        assert_eq!(error, ManifestError::Schema { found: 2 });
        let error = change(|manifest| manifest.shards[1].index = 2);
        assert!(matches!(
            error,
            ManifestError::Order {
                expected: 1,
                found: 2
            }
        ));
        let error = change(|manifest| manifest.shards[0].object = "../other/shard".to_owned());
        assert!(matches!(error, ManifestError::Name { shard: 0, .. }));
        let error = change(|manifest| manifest.totals.keys = Some(22));
        assert_eq!(error, ManifestError::Totals);
        let error = change(|manifest| manifest.shards[2].crc64 = "none".to_owned());
        assert!(matches!(error, ManifestError::Crc { shard: 2, .. }));
    }

    #[test]
    fn unknown_keys_of_one_shard_make_the_sum_unknown() {
        let mut shards = complete().shards;
        shards[1].keys = None;
        assert_eq!(Totals::of(&shards).keys, None);
        manifest(shards).validate().unwrap();
    }

    fn index() -> ShardIndex {
        let full = BLOCK_BYTES as u64;
        let block = |raw_offset, raw_bytes, stored_offset, stored_bytes| BlockEntry {
            raw_offset,
            raw_bytes,
            stored_offset,
            stored_bytes,
            sha256: Sha256Digest::of(b"block"),
            first_record: None,
        };
        ShardIndex {
            schema: SCHEMA,
            backup_id: "20261121t003000z-3f9c2a10".parse().unwrap(),
            shard: 0,
            object: "shard-0000-a1.rdb.gz".to_owned(),
            compression: Compression::default(),
            raw_bytes: full + 10,
            stored_bytes: 1005,
            sha256: Sha256Digest::of(b"object"),
            flavour: "redis".to_owned(),
            rdb_version: 10,
            blocks: vec![block(0, full, 0, 1000), block(full, 10, 1000, 5)],
            slots: Some(vec![SlotCount {
                slot: "7".parse().unwrap(),
                keys: 7,
                expires: 2,
                first_expiry_ms: Some(1_800_000_000_000),
            }]),
        }
    }

    #[test]
    fn an_index_has_to_be_the_one_the_manifest_names() {
        let (index, checksum) = (index(), Sha256Digest::of(b"index"));
        let record = ShardRecord {
            raw_bytes: index.raw_bytes,
            stored_bytes: index.stored_bytes,
            ..shard(0, &["0-16383"])
        };
        record.check_index(&index, checksum).unwrap();
        assert!(record.check_index(&index, Sha256Digest::of(b"")).is_err());
        let refused = |change: fn(&mut ShardIndex)| {
            let mut index = index.clone();
            change(&mut index);
            record
                .check_index(&index, checksum)
                .unwrap_err()
                .to_string()
        };
        let other = refused(|index| index.shard = 1);
        assert!(other.contains("another object"), "{other}");
        let other = refused(|index| index.blocks[1].stored_offset = 999);
        assert!(other.contains("block 1 does not begin"), "{other}");
        let other = refused(|index| index.blocks[0].raw_bytes = 10);
        assert!(other.contains("block 0 has 10 raw bytes"), "{other}");
        let other = refused(|index| index.slots = None);
        assert!(other.contains("counts other keys"), "{other}");
    }

    #[test]
    fn slots_of_an_index_are_short_arrays() {
        let json = serde_json::to_value(index()).unwrap();
        assert_eq!(
            json["slots"],
            serde_json::json!([[7, 7, 2, 1_800_000_000_000_i64]])
        );
        assert_eq!(serde_json::from_value::<ShardIndex>(json).unwrap(), index());
    }
}
