//! Whether a server takes what another one has saved. Pure.
//!
//! Versions of the RDB format: `RDB_VERSION` in `src/rdb.h` of the released servers. A server refuses payloads of a later
//! version than its own; Valkey 9 begins to count at 80 and refuses Redis' 12 to 79.

use common::cluster::info::{Family, ServerInfo};

/// Why a target cannot take a backup.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// The server is older than the backup's format.
    #[error(
        "the backup has RDB version {backup} (from {source_server}), the target's servers ({server}) read versions up to {target}: restore into a cluster of at least the version that was backed up"
    )]
    TooOld {
        /// Version of the backup's format.
        backup: u32,
        /// What was backed up.
        source_server: String,
        /// The target's server.
        server: String,
        /// What it reads.
        target: u32,
    },
    /// Redis and Valkey have gone different ways.
    #[error(
        "the backup has RDB version {backup} (from {source_server}), which the target's servers ({server}) refuse: Redis 7.4 and later and Valkey cannot read each other's data"
    )]
    OtherFamily {
        /// Version of the backup's format.
        backup: u32,
        /// What was backed up.
        source_server: String,
        /// The target's server.
        server: String,
    },
    /// The server is too old for cluster restores altogether.
    #[error(
        "the target's servers ({server}) are older than Redis 6.0, which this controller does not support"
    )]
    Unsupported {
        /// The target's server.
        server: String,
    },
}

/// First version of Valkey's own count, and the versions in between that only Redis writes.
const VALKEY_FIRST: u32 = 80;
const REDIS_ONLY: std::ops::RangeInclusive<u32> = 12..=79;

/// The latest RDB version a server reads.
pub fn latest_rdb_version(server: &ServerInfo) -> Option<u32> {
    let releases: &[(u32, u32, u32)] = match server.family {
        Family::Redis => &[
            (8, 8, 14),
            (8, 6, 13),
            (7, 4, 12),
            (7, 2, 11),
            (7, 0, 10),
            (6, 0, 9),
        ],
        Family::Valkey => &[(9, 2, 81), (9, 0, 80), (7, 2, 11)],
    };
    let (major, minor) = version(&server.version)?;
    let release = releases
        .iter()
        .find(|release| (release.0, release.1) <= (major, minor))?;
    Some(release.2)
}

/// Whether a server takes a backup of this RDB version.
pub fn check(backup: u32, source_server: &str, server: &ServerInfo) -> Result<(), Incompatible> {
    let name = describe(server);
    let Some(target) = latest_rdb_version(server) else {
        return Err(Incompatible::Unsupported { server: name });
    };
    let foreign = match server.family {
        Family::Redis => backup >= VALKEY_FIRST,
        Family::Valkey => REDIS_ONLY.contains(&backup),
    };
    let source_server = source_server.to_owned();
    if foreign {
        return Err(Incompatible::OtherFamily {
            backup,
            source_server,
            server: name,
        });
    }
    if backup > target {
        return Err(Incompatible::TooOld {
            backup,
            source_server,
            server: name,
            target,
        });
    }
    Ok(())
}

/// For people, for example "Redis 7.0.15".
pub fn describe(server: &ServerInfo) -> String {
    let family = match server.family {
        Family::Redis => "Redis",
        Family::Valkey => "Valkey",
    };
    format!("{family} {}", server.version)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(family: Family, version: &str) -> ServerInfo {
        ServerInfo {
            family,
            version: version.to_owned(),
            uptime_seconds: 0,
            loading: false,
        }
    }

    #[test]
    fn servers_read_what_their_release_can() {
        for (family, text, version) in [
            (Family::Redis, "5.0.14", None),
            (Family::Redis, "6.2.14", Some(9)),
            (Family::Redis, "7.0.15", Some(10)),
            (Family::Redis, "7.2.4", Some(11)),
            (Family::Redis, "8.4.0", Some(12)),
            (Family::Redis, "8.6.1", Some(13)),
            (Family::Redis, "9.0.0", Some(14)),
            (Family::Valkey, "7.2.9", Some(11)),
            (Family::Valkey, "8.1.3", Some(11)),
            (Family::Valkey, "9.0.1", Some(80)),
            (Family::Valkey, "9.2.0", Some(81)),
            (Family::Redis, "unknown", None),
        ] {
            assert_eq!(latest_rdb_version(&server(family, text)), version, "{text}");
        }
    }

    #[test]
    fn equal_or_newer_servers_take_a_backup() {
        for text in ["7.0.15", "7.2.4", "8.6.1"] {
            assert_eq!(
                check(10, "Redis 7.0.15", &server(Family::Redis, text)),
                Ok(())
            );
        }
        let older = check(11, "Redis 7.2.4", &server(Family::Redis, "7.0.15"));
        assert!(matches!(
            older,
            Err(Incompatible::TooOld { target: 10, .. })
        ));
    }

    #[test]
    fn the_families_part_after_redis_7_2() {
        let valkey = server(Family::Valkey, "9.0.0");
        assert_eq!(check(11, "Redis 7.2.4", &valkey), Ok(()));
        let newer = check(12, "Redis 7.4.0", &valkey);
        assert!(matches!(newer, Err(Incompatible::OtherFamily { .. })));
        let back = check(80, "Valkey 9.0.0", &server(Family::Redis, "8.8.0"));
        assert!(matches!(back, Err(Incompatible::OtherFamily { .. })));
    }
}
