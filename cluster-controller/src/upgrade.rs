//! Whether a cluster may change to another entry of the catalog. Pure.
//!
//! What counts is what its primaries run: they hold the data, and every new pod copies one of them. A replica that runs something else
//! decides nothing, so that an update which has reached replicas only can be taken back.
//!
//! A refusal changes nothing: the image of the pods stays the one that the status has kept.

use common::cluster::{info::Family, version::ServerVersion};
use crds::{Distribution, RedisClusterStatus, RedisVersionSpec};
use std::collections::BTreeSet;

/// Why a cluster does not change to the entry that its spec names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeRefusal {
    /// The entry holds an older series.
    #[error(
        "spec.version {entry}: {to} cannot read the data of {from}, which runs; no pod is changed. Set {kept}"
    )]
    Downgrade {
        /// The entry that the spec names.
        entry: String,
        /// What a primary runs.
        from: ServerVersion,
        /// What the entry holds.
        to: ServerVersion,
        /// What the user sets to what the pods keep.
        kept: String,
    },
    /// The entry lists where it can be reached from, and what runs is not in the list.
    #[error(
        "spec.version {entry}: {to} is reached from {paths}, and {from} runs; no pod is changed. Change to one of these first, or set \
         {kept}"
    )]
    NotInPath {
        /// The entry that the spec names.
        entry: String,
        /// What a primary runs.
        from: ServerVersion,
        /// What the entry holds.
        to: ServerVersion,
        /// The entry's `upgradesFrom`, with commas between them.
        paths: String,
        /// What the user sets to what the pods keep.
        kept: String,
    },
    /// The entry holds a server whose messages those that run do not take.
    #[error(
        "spec.version {entry}: {from}, which runs, does not understand the messages of {to}; no pod is changed. Change to 7.0 first, or \
         to 8.0 or newer, or set {kept}"
    )]
    OtherBus {
        /// The entry that the spec names.
        entry: String,
        /// What a primary runs.
        from: ServerVersion,
        /// What the entry holds.
        to: ServerVersion,
        /// What the user sets to what the pods keep.
        kept: String,
    },
    /// The entry holds a server of the other family.
    #[error(
        "spec.version {entry}: {from} runs, and a cluster does not change to {to} in place; no pod is changed. Set {kept}, and \
         restore a backup into a new cluster"
    )]
    OtherFamily {
        /// The entry that the spec names.
        entry: String,
        /// What a primary runs.
        from: ServerVersion,
        /// What the entry holds.
        to: ServerVersion,
        /// What the user sets to what the pods keep.
        kept: String,
    },
}

impl UpgradeRefusal {
    /// CamelCase, for the conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Downgrade { .. } => "DowngradeRefused",
            Self::NotInPath { .. } | Self::OtherBus { .. } => "UpgradePathMissing",
            Self::OtherFamily { .. } => "OtherDistribution",
        }
    }
}

/// The family that a distribution is.
pub fn family(distribution: Distribution) -> Family {
    match distribution {
        Distribution::Redis => Family::Redis,
        Distribution::Valkey => Family::Valkey,
    }
}

/// What the primaries run, as the status has kept it. One written before it said so for each node has what all nodes ran.
pub fn running(status: &RedisClusterStatus) -> BTreeSet<ServerVersion> {
    let primaries = status.shard_statuses.iter();
    let primaries = primaries.filter_map(|shard| shard.primary.as_ref()?.server.as_deref());
    let known: BTreeSet<ServerVersion> = primaries.filter_map(ServerVersion::read).collect();
    if !known.is_empty() {
        return known;
    }
    let running = status.version.running.as_deref().unwrap_or_default();
    running
        .split(", ")
        .filter_map(ServerVersion::read)
        .collect()
}

/// Why a cluster whose primaries run these may not change to the entry; none: it may. `kept` says which field gives what its pods keep
/// then, for example `spec.version back to redis-7`.
pub fn refusal(
    running: &BTreeSet<ServerVersion>,
    (entry, spec): (&str, &RedisVersionSpec),
    kept: &str,
) -> Option<UpgradeRefusal> {
    let to = ServerVersion::parse(family(spec.distribution), &spec.version)?;
    let (entry, kept) = (entry.to_owned(), kept.to_owned());
    if let Some(from) = running.iter().find(|one| one.family != to.family) {
        let from = *from;
        return Some(UpgradeRefusal::OtherFamily {
            entry,
            from,
            to,
            kept,
        });
    }
    if let Some(from) = running.iter().find(|one| to.is_older_series_than(one)) {
        let from = *from;
        return Some(UpgradeRefusal::Downgrade {
            entry,
            from,
            to,
            kept,
        });
    }
    if let Some(from) = running.iter().find(|one| cannot_talk(one, &to)) {
        let from = *from;
        return Some(UpgradeRefusal::OtherBus {
            entry,
            from,
            to,
            kept,
        });
    }
    let paths = &spec.upgrades_from;
    let leads = |from: &ServerVersion| {
        paths.is_empty() || from.series() == to.series() || paths.iter().any(|path| has(path, from))
    };
    let from = *running.iter().find(|from| !leads(from))?;
    Some(UpgradeRefusal::NotInPath {
        entry,
        from,
        to,
        paths: paths.join(", "),
        kept,
    })
}

/// Redis 7.2 and 7.4 put an extension into every message of the cluster bus, and a server before 7.0 drops such messages (`writePingExt` and
/// `clusterProcessPacket` in the engine's `cluster.c`): the first updated pod would not find its cluster.
fn cannot_talk(from: &ServerVersion, to: &ServerVersion) -> bool {
    let is_between = to.major == 7 && to.minor > 0;
    from.major < 7 && to.family == Family::Redis && is_between
}

/// Whether `7.0.15` or `7.0.x` names the version.
fn has(path: &str, version: &ServerVersion) -> bool {
    let (major, minor) = version.series();
    match path.strip_suffix(".x") {
        Some(series) => series == format!("{major}.{minor}"),
        None => ServerVersion::parse(version.family, path).as_ref() == Some(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::{NodeStatus, ShardStatus, VersionStatus};
    use proptest::prelude::*;

    fn spec(to: &ServerVersion, paths: &[&str]) -> RedisVersionSpec {
        RedisVersionSpec {
            version: format!("{}.{}.{}", to.major, to.minor, to.patch),
            distribution: match to.family {
                Family::Redis => Distribution::Redis,
                Family::Valkey => Distribution::Valkey,
            },
            image: "image".into(),
            upgrades_from: paths.iter().map(|path| (*path).to_owned()).collect(),
            deprecated: None,
            end_of_life: None,
        }
    }

    fn read(text: &str) -> ServerVersion {
        ServerVersion::read(text).unwrap()
    }

    /// The reason why a cluster with such primaries does not change.
    fn refused(from: &[&str], to: &str, paths: &[&str]) -> Option<&'static str> {
        let running = from.iter().map(|text| read(text)).collect();
        let spec = spec(&read(to), paths);
        refusal(&running, ("new", &spec), "old").map(|refusal| refusal.reason())
    }

    #[test]
    fn a_newer_series_is_reached_by_its_path() {
        let (from, to) = (["Redis 7.0.15"], "Redis 8.0.2");
        assert_eq!(refused(&from, to, &[]), None);
        assert_eq!(refused(&from, to, &["7.0.x"]), None);
        assert_eq!(refused(&from, to, &["7.2.x", "7.0.15"]), None);
        assert_eq!(
            refused(&from, to, &["7.0.14", "7.2.x"]),
            Some("UpgradePathMissing")
        );
        // Half of an earlier update: every primary needs a path.
        let mixed = ["Redis 7.0.15", "Redis 7.2.4"];
        assert_eq!(refused(&mixed, to, &["7.2.x"]), Some("UpgradePathMissing"));
        assert_eq!(refused(&mixed, to, &["7.0.x", "7.2.4"]), None);
        // A series is no prefix.
        assert_eq!(
            refused(&["Redis 7.0.15"], "Redis 70.0.0", &["70.0.x", "7.00.x"]),
            Some("UpgradePathMissing")
        );
    }

    #[test]
    fn an_older_series_and_another_family_are_refused() {
        let refused = |from: &[&str], to| refused(from, to, &["9.9.x"]);
        assert_eq!(
            refused(&["Redis 8.0.2"], "Redis 7.4.9"),
            Some("DowngradeRefused")
        );
        assert_eq!(
            refused(&["Redis 7.0.15", "Redis 8.0.2"], "Redis 7.0.15"),
            Some("DowngradeRefused")
        );
        assert_eq!(
            refused(&["Redis 7.2.4"], "Valkey 9.0.1"),
            Some("OtherDistribution")
        );
        assert_eq!(refused(&["Redis 7.0.15"], "Redis 7.0.3"), None);
        assert_eq!(refused(&[], "Redis 7.0.3"), None);
    }

    #[test]
    fn servers_before_7_are_updated_over_7_0() {
        for unreached in ["Redis 7.2.6", "Redis 7.4.1"] {
            let refused = refused(&["Redis 6.2.14"], unreached, &["6.2.x"]);
            assert_eq!(refused, Some("UpgradePathMissing"), "{unreached}");
        }
        for reached in ["Redis 7.0.15", "Redis 8.2.3", "Redis 6.2.20"] {
            assert_eq!(refused(&["Redis 6.2.14"], reached, &[]), None, "{reached}");
        }
        let running = [read("Redis 6.2.14")].into();
        let to = spec(&read("Redis 7.2.6"), &[]);
        let words = refusal(&running, ("redis-7-2", &to), "spec.version back to redis-6").unwrap();
        assert!(words.to_string().len() < common::sentence::LIMIT, "{words}");
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let running = [read("Redis 8.0.2")].into();
        let to = spec(&read("Redis 7.0.15"), &[]);
        let words = refusal(&running, ("redis-7", &to), "spec.version back to redis-8").unwrap();
        assert_eq!(
            words.to_string(),
            "spec.version redis-7: Redis 7.0.15 cannot read the data of Redis 8.0.2, which runs; no pod is changed. Set spec.version \
             back to redis-8"
        );
        assert!(words.to_string().len() < common::sentence::LIMIT);
    }

    /// A replica that an update has reached already does not keep it from being taken back.
    #[test]
    fn what_the_primaries_run_counts() {
        let node = |server: &str| NodeStatus {
            server: Some(server.into()),
            ..NodeStatus::default()
        };
        let shard = |primary, replica| ShardStatus {
            primary: Some(node(primary)),
            replicas: vec![node(replica)],
            ..ShardStatus::default()
        };
        let mut status = RedisClusterStatus {
            version: VersionStatus {
                running: Some("Redis 7.0.15, Redis 8.0.2".into()),
                ..VersionStatus::default()
            },
            shard_statuses: vec![
                shard("Redis 7.0.15", "Redis 8.0.2"),
                shard("Redis 7.0.15", "Redis 7.0.15"),
            ],
            ..RedisClusterStatus::default()
        };
        assert_eq!(running(&status), [read("Redis 7.0.15")].into());
        status.shard_statuses.clear();
        let all = [read("Redis 7.0.15"), read("Redis 8.0.2")];
        assert_eq!(running(&status), all.into());
    }

    fn version() -> impl Strategy<Value = ServerVersion> {
        let family = prop_oneof![4 => Just(Family::Redis), 1 => Just(Family::Valkey)];
        (family, 6..9_u32, 0..3_u32, 0..3_u32).prop_map(|(family, major, minor, patch)| {
            ServerVersion {
                family,
                major,
                minor,
                patch,
            }
        })
    }

    proptest! {
        #[test]
        fn nothing_older_or_of_another_family_is_reached(
            running in prop::collection::btree_set(version(), 0..4),
            to in version(),
            paths in prop::collection::vec((6..9_u32, 0..3_u32), 0..4),
        ) {
            let paths: Vec<String> = paths.iter().map(|(major, minor)| format!("{major}.{minor}.x")).collect();
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let answer = refusal(&running, ("new", &spec(&to, &paths)), "old");
            let newer = |one: &ServerVersion| one.series() > to.series();
            let lies_in_path = |one: &ServerVersion| {
                paths.is_empty() || one.series() == to.series() || paths.contains(&format!("{}.{}.x", one.major, one.minor).as_str())
            };
            let talks = |one: &ServerVersion| one.major >= 7 || to.series() == (7, 0) || to.major != 7 || to.family == Family::Valkey;
            let expected = running.iter().all(|one| one.family == to.family && !newer(one) && talks(one) && lies_in_path(one));
            prop_assert_eq!(answer.is_none(), expected, "{:?}", answer);
            // What all primaries run already is always taken back to.
            if running.len() == 1 && running.contains(&to) {
                prop_assert!(answer.is_none());
            }
        }
    }
}
