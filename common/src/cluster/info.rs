//! What a node says about itself: its answer to `INFO` as values.
//!
//! The names of the lines are those of `genRedisInfoString` in the engine's `server.c`. They exist in every version from
//! Redis 6.2 and Valkey 7.2 on; a line that is missing counts as zero or empty.

use super::topology::NodeAddress;
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

/// An answer to `INFO`, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Info(HashMap<String, String>);

impl Info {
    /// The lines of an answer.
    pub fn parse(text: &str) -> Self {
        text.lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.trim_end().split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    /// The value of a line.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of a line that is a number; 0 without one.
    pub fn number(&self, name: &str) -> u64 {
        self.get(name)
            .and_then(|value| value.parse().ok())
            .unwrap_or_default()
    }

    /// Whether the value of a line is 1.
    pub fn flag(&self, name: &str) -> bool {
        self.get(name) == Some("1")
    }

    /// Keys in all databases, from the lines of the section `keyspace`.
    pub fn keys(&self) -> u64 {
        self.0
            .iter()
            .filter(|(name, _)| {
                name.strip_prefix("db")
                    .is_some_and(|number| number.parse::<u32>().is_ok())
            })
            .filter_map(|(_, value)| pair(value, "keys")?.parse::<u64>().ok())
            .sum()
    }

    /// Which server runs, from the section `server`.
    pub fn server(&self) -> ServerInfo {
        let valkey = self.get("valkey_version");
        ServerInfo {
            family: match (valkey, self.get("server_name")) {
                (None, None | Some("redis")) => Family::Redis,
                _ => Family::Valkey,
            },
            version: valkey
                .or_else(|| self.get("redis_version"))
                .unwrap_or_default()
                .to_owned(),
            uptime_seconds: self.number("uptime_in_seconds"),
            loading: self.flag("loading") || self.flag("async_loading"),
        }
    }

    /// Whether the node can write to its disk, from the section `persistence`.
    pub fn persistence(&self) -> PersistenceInfo {
        let failed = |name| self.get(name).is_some_and(|status| status != "ok");
        PersistenceInfo {
            append_failed: failed("aof_last_write_status"),
            snapshot_failed: failed("rdb_last_bgsave_status"),
            is_rewriting: self.flag("aof_rewrite_in_progress")
                || self.flag("aof_rewrite_scheduled"),
        }
    }

    /// The node's part in replication, from the section `replication`.
    pub fn replication(&self) -> ReplicationInfo {
        let link = || UpstreamLink {
            ip: self.get("master_host").and_then(|host| host.parse().ok()),
            port: self.get("master_port").and_then(|port| port.parse().ok()),
            up: self.get("master_link_status") == Some("up"),
            syncing: self.flag("master_sync_in_progress"),
            // -1: never up since the process started.
            down_seconds: self
                .get("master_link_down_since_seconds")
                .and_then(|value| value.parse().ok()),
            // -1: it is down.
            heard_seconds: self
                .get("master_last_io_seconds_ago")
                .and_then(|value| value.parse().ok()),
        };
        let replica = self.get("role") == Some("slave");
        ReplicationInfo {
            upstream: replica.then(link),
            // A replica that has given up resuming reports 0 in its own line, but the backlog still knows.
            offset: self
                .number("slave_repl_offset")
                .max(self.number("master_repl_offset")),
            id: self.get("master_replid").unwrap_or_default().to_owned(),
            second_id: self
                .get("master_replid2")
                .filter(|id| id.bytes().any(|digit| digit != b'0'))
                .map(str::to_owned),
            // The position of the first byte that is not part of it; -1: there is none.
            second_offset: self.number("second_repl_offset").saturating_sub(1),
            replicas: (0..self.number("connected_slaves"))
                .filter_map(|index| AttachedReplica::parse(self.get(&format!("slave{index}"))?))
                .collect(),
        }
    }
}

impl FromIterator<(String, String)> for Info {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(lines: T) -> Self {
        Self(lines.into_iter().collect())
    }
}

/// The value of `name` in `name=value,name=value`.
fn pair<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split(',')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// The families of servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Redis.
    #[default]
    Redis,
    /// Valkey, which also reports a `redis_version` of 7.2.4 for old clients.
    Valkey,
}

impl fmt::Display for Family {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Redis => "Redis",
            Self::Valkey => "Valkey",
        })
    }
}

/// Which server runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerInfo {
    /// Redis or Valkey.
    pub family: Family,
    /// Version, for example 7.0.15.
    pub version: String,
    /// Seconds since the process started.
    pub uptime_seconds: u64,
    /// Whether it is still loading its data.
    pub loading: bool,
}

impl ServerInfo {
    /// Whether the version is at least this one. Every Valkey counts as 7.2 or newer.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self
            .version
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}

impl fmt::Display for ServerInfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.family, self.version)
    }
}

/// A node's part in replication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicationInfo {
    /// The link to the primary; none on a primary.
    pub upstream: Option<UpstreamLink>,
    /// Position in the stream of writes: what a primary has written, what a replica has applied.
    pub offset: u64,
    /// Identity of the stream of writes: offsets compare only within one.
    pub id: String,
    /// The stream that this one continues: of the primary before the last failover. None: it begins here.
    pub second_id: Option<String>,
    /// Up to which position: what others wrote to that stream later is not in this one.
    pub second_offset: u64,
    /// Attached replicas; a running backup is one of them.
    pub replicas: Vec<AttachedReplica>,
}

impl ReplicationInfo {
    /// Whether the offsets of both count writes of one history: one is the stream of the other, or was continued from where that is.
    pub fn shares_history(&self, other: &Self) -> bool {
        self.id == other.id || self.continues(other) || other.continues(self)
    }

    fn continues(&self, other: &Self) -> bool {
        self.second_id.as_ref() == Some(&other.id) && other.offset <= self.second_offset
    }
}

/// What a node has on its disk, and whether it can write to it. While it cannot, it refuses clients' writes (`MISCONF`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistenceInfo {
    /// The last write to the append-only file failed.
    pub append_failed: bool,
    /// The last snapshot failed. Writes are refused only where snapshots are configured.
    pub snapshot_failed: bool,
    /// The append-only file is being rewritten, or is about to be. After a full copy a replica goes on with the file that it had before until a
    /// new one is written (`AOF_WAIT_REWRITE` in the engine's `aof.c`), and keeps trying while that fails: a process that ends until then comes
    /// back with the data of before.
    pub is_rewriting: bool,
}

/// A replica's link to its primary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamLink {
    /// Address of the primary.
    pub ip: Option<IpAddr>,
    /// Port of the primary.
    pub port: Option<u16>,
    /// Whether the link is up.
    pub up: bool,
    /// Whether a full copy is being received.
    pub syncing: bool,
    /// Seconds since the link was lost. None: it is up, or it has never been up since the process started.
    pub down_seconds: Option<u64>,
    /// Seconds since the primary last sent something, a ping each 10 s at least, while the link is up.
    pub heard_seconds: Option<u64>,
}

impl UpstreamLink {
    /// Whether the replica has a copy and follows the primary's writes.
    pub fn follows(&self) -> bool {
        self.up && !self.syncing
    }

    /// Seconds without a link: 0 while it is up. None: it has never been up since the process started.
    pub fn unlinked_seconds(&self) -> Option<u64> {
        if self.up { Some(0) } else { self.down_seconds }
    }

    /// Until when the replica has missed no write, as far as it says: a link to a machine that is cut off stays up for up to `repl-timeout`, a
    /// minute, and counts as lost from then on, also by the engine's own measure. None: it has never been up since the process started.
    pub fn current_until(&self, now: Timestamp) -> Option<Timestamp> {
        let seconds = if self.up {
            self.heard_seconds.unwrap_or_default()
        } else {
            self.down_seconds?
        };
        let seconds = i64::try_from(seconds).ok()?;
        now.checked_sub(SignedDuration::from_secs(seconds)).ok()
    }

    /// Whether the link leads to this address.
    pub fn leads_to(&self, address: &NodeAddress) -> bool {
        self.ip == Some(address.ip) && self.port == Some(address.port)
    }
}

/// A replica as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedReplica {
    /// Address it announced.
    pub ip: IpAddr,
    /// Port it announced.
    pub port: u16,
    /// Whether it receives the stream of writes (`state=online`).
    pub online: bool,
    /// Position it has acknowledged.
    pub offset: u64,
}

impl AttachedReplica {
    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    fn parse(text: &str) -> Option<Self> {
        Some(Self {
            ip: pair(text, "ip")?.parse().ok()?,
            port: pair(text, "port")?.parse().ok()?,
            online: pair(text, "state") == Some("online"),
            offset: pair(text, "offset")?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_primary() {
        let info = Info::parse(
            "# Server\r\nredis_version:7.0.15\r\nloading:0\r\n\r\n# Replication\r\nrole:master\r\n\
             connected_slaves:1\r\nslave0:ip=10.0.0.7,port=6379,state=online,offset=1234,lag=1\r\n\
             master_replid:77\r\nmaster_repl_offset:1300\r\n# Keyspace\r\ndb0:keys=12,expires=3,avg_ttl=0\r\ndb1:keys=2,expires=0\r\n",
        );
        let replication = info.replication();
        assert_eq!(replication.offset, 1300);
        assert!(replication.upstream.is_none());
        assert_eq!(replication.replicas.len(), 1);
        assert!(replication.replicas[0].online);
        assert_eq!(info.keys(), 14);
        assert_eq!(info.server().to_string(), "Redis 7.0.15");
        assert!(info.server().at_least(7, 0) && !info.server().at_least(7, 2));
    }

    #[test]
    fn a_link_that_was_never_up_has_not_been_lost() {
        let link = |seconds: &str| {
            let text = format!(
                "role:slave\r\nmaster_link_status:down\r\nmaster_link_down_since_seconds:{seconds}\r\n"
            );
            Info::parse(&text).replication().upstream.unwrap()
        };
        assert_eq!(link("-1").down_seconds, None);
        assert_eq!(link("0").down_seconds, Some(0));
        assert_eq!(link("71").down_seconds, Some(71));
    }

    #[test]
    fn a_history_is_continued_by_a_failover() {
        let of = |id: &str, second: &str| {
            let text = format!(
                "role:master\r\nmaster_replid:{id}\r\nmaster_replid2:{second}\r\nmaster_repl_offset:90\r\nsecond_repl_offset:91\r\n"
            );
            Info::parse(&text).replication()
        };
        let none = "0000000000000000000000000000000000000000";
        let (old, new, other) = (of("aa", none), of("bb", "aa"), of("cc", none));
        assert_eq!(old.second_id, None);
        assert!(old.shares_history(&new) && new.shares_history(&old));
        assert!(!other.shares_history(&new) && !old.shares_history(&other));
        // It went on alone.
        let beyond = ReplicationInfo { offset: 91, ..old };
        assert!(!beyond.shares_history(&new) && !new.shares_history(&beyond));
    }

    #[test]
    fn a_disk_that_takes_no_writes_is_seen() {
        let info = Info::parse("rdb_last_bgsave_status:ok\r\naof_last_write_status:err\r\n");
        let persistence = info.persistence();
        assert!(persistence.append_failed && !persistence.snapshot_failed);
        for line in ["aof_rewrite_in_progress:1", "aof_rewrite_scheduled:1"] {
            assert!(Info::parse(line).persistence().is_rewriting, "{line}");
        }
        let idle =
            "aof_rewrite_in_progress:0\naof_rewrite_scheduled:0\naof_last_bgrewrite_status:err";
        assert!(!Info::parse(idle).persistence().is_rewriting);
        assert_eq!(Info::parse("").persistence(), PersistenceInfo::default());
    }

    #[test]
    fn reads_a_replica_and_valkey() {
        let info = Info::parse(
            "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.1\r\nrole:slave\r\nmaster_host:10.0.0.8\r\n\
             master_port:6379\r\nmaster_link_status:up\r\nmaster_sync_in_progress:0\r\nslave_repl_offset:99\r\n",
        );
        let replication = info.replication();
        let link = replication.upstream.unwrap();
        assert!(link.up && !link.syncing);
        assert!(link.leads_to(&NodeAddress::new("10.0.0.8".parse().unwrap(), 6379)));
        assert_eq!(replication.offset, 99);
        assert_eq!(info.server().to_string(), "Valkey 9.0.1");
        assert!(info.server().at_least(7, 0));
    }
}
