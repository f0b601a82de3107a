//! What a server that is made up answers: the commands of a look at it, in the words of Redis 7.0.

use super::{MadeUpCluster, MadeUpNode, node_id};
use anyhow::{Result, bail};
use common::cluster::resp::{Reply, ReplyDecoder};
use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Longest command.
const LONGEST: usize = 1 << 16;

/// A cluster as its nodes describe it.
pub(super) struct Cluster {
    /// The line of each node as the others have it.
    lines: Vec<String>,
    nodes: Vec<Node>,
    per_shard: usize,
    hangs: AtomicBool,
}

struct Node {
    id: String,
    address: SocketAddr,
    /// Its own line.
    own: String,
    settings: Mutex<BTreeMap<String, String>>,
    asked: Mutex<Instant>,
}

impl Cluster {
    pub(super) fn new(cluster: &MadeUpCluster, addresses: &[SocketAddr]) -> Self {
        let line = |index: usize, myself: &str| line(cluster, index, myself, addresses);
        let node = |(index, node): (usize, &MadeUpNode)| Node {
            id: node_id(&cluster.name, index),
            address: addresses[index],
            own: line(index, "myself,"),
            settings: Mutex::new(BTreeMap::from([
                ("cluster-node-timeout".to_owned(), "5000".to_owned()),
                ("syslog-ident".to_owned(), node.proof.clone()),
            ])),
            asked: Mutex::new(Instant::now()),
        };
        Self {
            lines: (0..addresses.len()).map(|index| line(index, "")).collect(),
            nodes: cluster.nodes.iter().enumerate().map(node).collect(),
            per_shard: cluster.per_shard,
            hangs: AtomicBool::new(false),
        }
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::Relaxed);
    }

    /// How long ago the node that was not asked for the longest was asked.
    pub(super) fn age(&self, now: Instant) -> Duration {
        let asked = self.nodes.iter().map(|node| *lock(&node.asked));
        let oldest = asked.min().unwrap_or(now);
        now.saturating_duration_since(oldest)
    }

    fn reply(&self, me: usize, words: &[&str]) -> Result<String> {
        let node = &self.nodes[me];
        let (all, shards) = (self.nodes.len(), self.nodes.len() / self.per_shard);
        let text = match words {
            ["INFO"] => {
                *lock(&node.asked) = Instant::now();
                self.info(me)
            }
            ["CLUSTER", "INFO"] => format!(
                "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_known_nodes:{all}\r\n\
                 cluster_size:{shards}\r\ncluster_current_epoch:{shards}\r\n"
            ),
            ["CLUSTER", "NODES"] => {
                let (before, after) = (&self.lines[..me], &self.lines[me + 1..]);
                [before.concat(), node.own.clone(), after.concat()].concat()
            }
            ["CONFIG", "GET", name] => {
                let settings = lock(&node.settings);
                let value = settings.get(*name).map_or("", String::as_str);
                return Ok(list(&[name, value]));
            }
            ["CONFIG", "SET", pairs @ ..] => {
                for pair in pairs.chunks_exact(2) {
                    lock(&node.settings).insert(pair[0].to_owned(), pair[1].to_owned());
                }
                "OK".to_owned()
            }
            ["CLUSTER", "MYID"] => node.id.clone(),
            ["CLUSTER", "COUNTKEYSINSLOT", _] => return Ok(":0\r\n".to_owned()),
            ["ACL", "LIST"] => return Ok(list(&["user default on nopass ~* &* +@all"])),
            _ => bail!("{words:?}"),
        };
        Ok(format!("${}\r\n{text}\r\n", text.len()))
    }

    /// As long as that of Redis 7.0, which has 190 lines.
    fn info(&self, me: usize) -> String {
        let mut text = "redis_version:7.0.15\r\nuptime_in_seconds:1000\r\nloading:0\r\naof_last_write_status:ok\r\n\
                        rdb_last_bgsave_status:ok\r\nmaster_repl_offset:1000\r\n"
            .to_owned();
        let primary = me / self.per_shard * self.per_shard;
        // Writing into a String cannot fail.
        if me == primary {
            let _ = write!(
                text,
                "role:master\r\nconnected_slaves:{}\r\n",
                self.per_shard - 1
            );
            for (number, replica) in (primary + 1..primary + self.per_shard).enumerate() {
                let address = self.nodes[replica].address;
                let _ = write!(
                    text,
                    "slave{number}:ip={},port={},state=online,offset=1000,lag=0\r\n",
                    address.ip(),
                    address.port()
                );
            }
        } else {
            let address = self.nodes[primary].address;
            let _ = write!(
                text,
                "role:slave\r\nmaster_host:{}\r\nmaster_port:{}\r\nmaster_link_status:up\r\nslave_repl_offset:1000\r\n",
                address.ip(),
                address.port()
            );
        }
        let _ = write!(text, "master_replid:{:040x}\r\n", primary + 1);
        for number in 0..180 {
            let _ = write!(text, "another_fact_of_the_server_{number}:1234567\r\n");
        }
        text
    }
}

fn lock<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn list(words: &[&str]) -> String {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        let _ = write!(text, "${}\r\n{word}\r\n", word.len());
    }
    text
}

/// A line of CLUSTER NODES.
fn line(cluster: &MadeUpCluster, index: usize, myself: &str, all: &[SocketAddr]) -> String {
    let (shard, ordinal) = (index / cluster.per_shard, index % cluster.per_shard);
    let shards = all.len() / cluster.per_shard;
    let address = all[index];
    let bus = address.port().wrapping_add(10_000);
    let name = &cluster.name;
    let (role, ranges) = if ordinal == 0 {
        let edge = |part: usize| part * 16384 / (cluster.ranges * shards);
        let range = |number: usize| {
            let part = number * shards + shard;
            format!(" {}-{}", edge(part), edge(part + 1) - 1)
        };
        (
            "master -".to_owned(),
            (0..cluster.ranges).map(range).collect(),
        )
    } else {
        let primary = node_id(name, index - ordinal);
        (format!("slave {primary}"), String::new())
    };
    format!(
        "{} {address}@{bus},{name}-{shard}-{ordinal}.{name}-nodes.{}.svc {myself}{role} 0 1700000000000 {} connected{ranges}\n",
        node_id(name, index),
        cluster.namespace,
        shard + 1
    )
}

pub(super) async fn serve(listener: TcpListener, me: usize, cluster: Arc<Cluster>) {
    while let Ok((client, _)) = listener.accept().await {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            // What is not expected of a server that is made up ends the connection, and is seen there.
            if let Err(error) = answer(client, me, &cluster).await {
                eprintln!("a made up server: {error:#}");
            }
        });
    }
}

async fn answer(mut client: TcpStream, me: usize, cluster: &Cluster) -> Result<()> {
    let mut decoder = ReplyDecoder::new(LONGEST);
    let mut received = Vec::new();
    while client.read_buf(&mut received).await? > 0 {
        // A command looks like the reply that is a list of strings.
        while let Some((command, length)) = decoder.decode(&received)? {
            let words = words(&command)?;
            received.drain(..length);
            if !cluster.hangs.load(Ordering::Relaxed) {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let reply = cluster.reply(me, &words)?;
                client.write_all(reply.as_bytes()).await?;
            }
        }
    }
    Ok(())
}

fn words(command: &Reply<'_>) -> Result<Vec<String>> {
    let Reply::Array(Some(words)) = command else {
        bail!("{command:?}");
    };
    let words = words.iter().map(|word| match word {
        Reply::Bulk(Some(word)) => Ok(String::from_utf8_lossy(word).into_owned()),
        other => bail!("{other:?}"),
    });
    words.collect()
}
