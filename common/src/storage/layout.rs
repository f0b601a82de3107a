//! Names of the objects of one backup.
//!
//! ```text
//! <prefix>/<namespace>/<cluster>/<backup id>/
//!     shard-0000-a1-3f9c2a10.rdb.gz   raw RDB of one shard in gzip members (`gzip -d` reads it), or .rdb; a1 = attempt
//!     shard-0000-a1-3f9c2a10.json     its block table and its keys per slot
//!     manifest.json                   written last: without it there is no backup
//! ```
//! Attempts write different keys, and so do two claims of one attempt ([`Layout::of_claim`]), so that two writers never
//! share a key. Readers take the names from the manifest. It names its shards relative to itself: a backup copied to
//! another bucket or prefix stays a backup.

use super::{codec::Compression, location::Location};
use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{fmt, str::FromStr};

/// The version of manifest and index that this code writes and reads.
pub const SCHEMA: u32 = 1;

/// Identity of a backup: time of the request in UTC and the start of the resource's uid, `20261121t003000z-3f9c2a10`.
/// Sorts by time; every replica computes the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct BackupId(String);

impl BackupId {
    /// The id of the backup that a resource with this creation time and uid asks for.
    pub fn new(created: Timestamp, uid: &str) -> Self {
        let time = created.to_zoned(TimeZone::UTC).strftime("%Y%m%dt%H%M%Sz");
        let start: String = uid
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(8)
            .map(|letter| letter.to_ascii_lowercase())
            .collect();
        Self(format!("{time}-{start:0>8}"))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not an id of a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the id of a backup, which looks like 20261121t003000z-3f9c2a10")]
pub struct BadBackupId(String);

impl FromStr for BackupId {
    type Err = BadBackupId;

    fn from_str(text: &str) -> Result<Self, BadBackupId> {
        let fits = (1..=63).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        fits.then(|| Self(text.to_owned()))
            .ok_or_else(|| BadBackupId(text.chars().take(80).collect()))
    }
}

impl<'de> Deserialize<'de> for BackupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// Name of the manifest below a backup's root.
pub const MANIFEST: &str = "manifest.json";

/// Where the objects of one backup are. Keys are whole keys, names are relative to the backup's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: String,
    /// Distinguishes the names of one claim from those of others; may be empty.
    mark: String,
}

impl Layout {
    /// The layout of a new backup of a cluster.
    pub fn new(location: &Location, namespace: &str, cluster: &str, id: &BackupId) -> Self {
        Self::at(location, &format!("{namespace}/{cluster}/{id}"))
    }

    /// The layout of a backup at this path below the location's prefix. The path may end in `manifest.json`.
    pub fn at(location: &Location, path: &str) -> Self {
        let path = path.trim_matches('/');
        let path = path.strip_suffix(MANIFEST).unwrap_or(path);
        let segments = [location.prefix(), path.trim_matches('/')];
        let root = segments
            .into_iter()
            .filter(|segment| !segment.is_empty())
            .fold(String::new(), |root, segment| root + segment + "/");
        Self {
            root,
            mark: String::new(),
        }
    }

    /// The same backup for one claim: its shards have names with this mark. A claim that is released keeps its attempt, and
    /// a completion that its holder could not cancel may still replace the object later.
    #[must_use]
    pub fn of_claim(self, mark: &str) -> Self {
        Self {
            mark: format!("-{mark}"),
            ..self
        }
    }

    /// The prefix of all keys of this backup; ends in a slash.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The key of a name below the root.
    pub fn key(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// Key of the manifest.
    pub fn manifest(&self) -> String {
        self.key(MANIFEST)
    }

    /// The backup as users see it: `s3://bucket/prefix/namespace/cluster/id/`.
    pub fn destination(&self, location: &Location) -> String {
        format!("s3://{}/{}", location.bucket(), self.root)
    }

    /// Name of the object that one attempt stores a shard in.
    pub fn shard_name(&self, shard: u32, attempt: u32, compression: Compression) -> String {
        let (mark, extension) = (&self.mark, compression.extension());
        format!("shard-{shard:04}-a{attempt}{mark}{extension}")
    }

    /// Name of the index beside it.
    pub fn index_name(&self, shard: u32, attempt: u32) -> String {
        let mark = &self.mark;
        format!("shard-{shard:04}-a{attempt}{mark}.json")
    }
}

/// Whether a name stays below the backup's root.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 255
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::location::Given;

    fn location(prefix: &str) -> Location {
        Location::new(&Given {
            bucket: "backups",
            prefix: Some(prefix),
            ..Given::default()
        })
        .unwrap()
    }

    #[test]
    fn id_is_time_and_uid_and_sorts_by_time() {
        let earlier = "2026-11-21T00:30:00Z".parse().unwrap();
        let later = "2026-11-21T00:30:01Z".parse().unwrap();
        let uid = "3F9c2a10-77aa-4c1e-9d4e-0123456789ab";
        let id = BackupId::new(earlier, uid);
        assert_eq!(id.as_str(), "20261121t003000z-3f9c2a10");
        assert_eq!(id, id.as_str().parse().unwrap());
        assert!(id < BackupId::new(later, "00000000"));
        assert!("../other".parse::<BackupId>().is_err());
    }

    #[test]
    fn keys_are_below_prefix_namespace_cluster_id() {
        let location = location("/team-a/redis/");
        let id = "20261121t003000z-3f9c2a10".parse().unwrap();
        let layout = Layout::new(&location, "shop", "cart", &id);
        let root = "team-a/redis/shop/cart/20261121t003000z-3f9c2a10/";
        assert_eq!(layout.root(), root);
        assert_eq!(layout.manifest(), format!("{root}manifest.json"));
        assert_eq!(
            layout.destination(&location),
            format!("s3://backups/{root}")
        );
        let name = layout.shard_name(3, 2, Compression::default());
        assert_eq!(layout.key(&name), format!("{root}shard-0003-a2.rdb.gz"));
        assert_eq!(layout.index_name(3, 2), "shard-0003-a2.json");
        assert_eq!(
            layout.shard_name(0, 1, Compression::None),
            "shard-0000-a1.rdb"
        );
        let claimed = layout.clone().of_claim("0badcafe");
        assert_eq!(claimed.root(), layout.root());
        assert_eq!(claimed.index_name(3, 2), "shard-0003-a2-0badcafe.json");
        let name = claimed.shard_name(0, 1, Compression::None);
        assert_eq!(name, "shard-0000-a1-0badcafe.rdb");
        assert!(is_plain_name(&name));
    }

    #[test]
    fn path_of_a_raw_location_may_name_the_manifest() {
        let location = location("team");
        for path in ["a/b/c", "/a/b/c/", "a/b/c/manifest.json"] {
            assert_eq!(Layout::at(&location, path).root(), "team/a/b/c/", "{path}");
        }
        let bare = super::tests::location("");
        assert_eq!(Layout::at(&bare, "").manifest(), "manifest.json");
        assert_eq!(Layout::at(&bare, "manifest.json").root(), "");
    }
}
