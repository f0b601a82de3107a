//! What a look at a cluster of 500 nodes holds in memory, and how the work grows with the nodes. The nodes are made up: a process that
//! answers as they would.

use anyhow::{Context, Result, ensure};
use cluster_controller::{
    decision::{Goal, decide},
    observe::{Observed, wanted},
    pods::Pods,
    redis::{
        identity::known_nodes,
        member::{ExpectedNode, Member, ZoneLabel},
        observe::observe,
    },
    settings::tracker::ClusterAnswers,
    validate::shape,
};
use common::cluster::{
    kept_connections::ClusterConnections,
    resp::{Reply, ReplyDecoder},
    topology::NodeAddress,
};
use crds::RedisCluster;
use jiff::Timestamp;
use serde_json::json;
use std::{
    collections::BTreeMap,
    collections::BTreeSet,
    env,
    fmt::Write,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use tests::memory::{MIB, Peak, as_in_the_image};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Says to this program that it is to be so many nodes.
const MADE_UP: &str = "MADE_UP_NODES";
/// What the line begins with in which their process names their ports.
const PORTS: &str = "ports";
const NODES: usize = 500;
/// A fourth of them: four times as many nodes may take sixteen times as long, for there are so many more lines.
const FEWER: usize = NODES / 4 - 1;
/// Most memory that a look may add, with all that follows from it.
const MOST: u64 = 64 * MIB;
/// How much longer the larger cluster may take: what grows with the third power would take 64 times as long.
const LONGER: u32 = 40;
/// This machine has other work, and answers are not what is measured.
const TIMEOUT: Duration = Duration::from_secs(20);

#[test]
fn a_cluster_of_500_nodes_is_held_in_64_mebibytes() -> Result<()> {
    if let Ok(nodes) = env::var(MADE_UP) {
        let runtime = tokio::runtime::Runtime::new()?;
        return runtime.block_on(be_nodes(nodes.parse()?));
    }
    as_in_the_image(measure())
}

async fn measure() -> Result<()> {
    let nodes = MadeUpNodes::start(NODES)?;
    let peak = Peak::watch()?;
    let began = Instant::now();
    let many = Look::at(&nodes.ports).await?;
    let looked = began.elapsed();
    let took = many.decide(3)?;
    let added = peak.added();
    drop((many, nodes));
    let nodes = MadeUpNodes::start(FEWER)?;
    let few = Look::at(&nodes.ports).await?.decide(20)?;
    println!(
        "{NODES} nodes: {} MiB, asked in {looked:?}; decided in {took:?}, {FEWER} of them in {few:?}",
        added / MIB
    );
    ensure!(added < MOST, "{added} bytes");
    ensure!(took < few * LONGER, "{took:?} and {few:?}");
    Ok(())
}

/// A cluster, and what its nodes reported.
struct Look {
    object: RedisCluster,
    members: Vec<Member>,
}

impl Look {
    async fn at(ports: &[u16]) -> Result<Self> {
        let object = cluster(ports.len())?;
        let expected: Vec<ExpectedNode> = ports.iter().enumerate().map(expected).collect();
        let members = observe(&expected, &ClusterConnections::default(), TIMEOUT).await;
        for member in &members {
            ensure!(member.report().is_some(), "{member:?}");
        }
        Ok(Self { object, members })
    }

    /// How much processor time it takes to find that nothing is to be done: the mean of so many times.
    fn decide(&self, times: u32) -> Result<Duration> {
        let shape = shape(&self.object)?;
        let mut used = Duration::ZERO;
        for _ in 0..times {
            let mut wanted = wanted(&shape, true, BTreeMap::new());
            wanted.known = known_nodes(&wanted, &self.members);
            let observed = Observed {
                pods: Pods::new(),
                members: self.members.clone(),
                passed_over: false,
            };
            let goal = Goal {
                written: &BTreeSet::new(),
                shape: &shape,
                cluster: None,
                wanted: &wanted,
                sets: &[],
                moving: false,
                settings: None,
            };
            let before = processor_time()?;
            let decision = decide(&goal, observed, &ClusterAnswers::new(), Timestamp::now());
            used += processor_time()?.saturating_sub(before);
            let (plan, problems) = (decision.plan, decision.assessment.problems);
            ensure!(plan.steps.is_empty(), "{plan:?}");
            ensure!(problems.is_empty(), "{problems:?}");
        }
        Ok(used / times)
    }
}

/// What this thread has used, which does not depend on the other work of the machine.
fn processor_time() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().context("no time")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}

fn cluster(nodes: usize) -> Result<RedisCluster> {
    let object = json!({"apiVersion": "redis.danieldorado.github.io/v1alpha1", "kind": "RedisCluster",
        "metadata": {"name": "shop", "namespace": "team"},
        "spec": {"version": "redis-7.0.15", "shards": nodes / 2, "replicasPerShard": 1,
                 "config": {"cluster-node-timeout": "5000"}}});
    Ok(serde_json::from_value(object)?)
}

fn expected((index, port): (usize, &u16)) -> ExpectedNode {
    let (shard, ordinal) = (index / 2, index % 2);
    ExpectedNode {
        address: Some(NodeAddress::new(Ipv4Addr::LOCALHOST.into(), *port)),
        // The two of a shard run on different ones, and each has the same number of primaries.
        kubernetes_node: Some(format!("node-{}", (shard + ordinal * 25) % 50)),
        zone: ZoneLabel::Absent,
        ..ExpectedNode::new(format!("shop-{shard}-{ordinal}"), shard, ordinal)
    }
}

/// The process that answers for the nodes.
struct MadeUpNodes {
    process: Child,
    /// Open as long as the process may write.
    output: BufReader<ChildStdout>,
    ports: Vec<u16>,
}

impl MadeUpNodes {
    fn start(nodes: usize) -> Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .arg("--nocapture")
            .env(MADE_UP, nodes.to_string())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("no output")?;
        let mut made_up = Self {
            process,
            output: BufReader::new(output),
            ports: Vec::new(),
        };
        let mut line = String::new();
        while made_up.output.read_line(&mut line)? > 0 {
            if let Some(ports) = line.strip_prefix(PORTS) {
                let ports = ports.split_whitespace().map(str::parse::<u16>);
                made_up.ports = ports.collect::<Result<_, _>>()?;
                break;
            }
            line.clear();
        }
        ensure!(made_up.ports.len() == nodes, "{:?}", made_up.ports);
        Ok(made_up)
    }
}

impl Drop for MadeUpNodes {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn be_nodes(count: usize) -> Result<()> {
    let mut listeners = Vec::new();
    for _ in 0..count {
        listeners.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?);
    }
    let addresses = listeners.iter().map(TcpListener::local_addr);
    let addresses: Vec<SocketAddr> = addresses.collect::<Result<_, _>>()?;
    let ports = addresses.iter().map(|address| address.port().to_string());
    let ports: Vec<String> = ports.collect();
    let lines = (0..count).map(|index| line(index, "", &addresses));
    let cluster = Arc::new(MadeUpCluster {
        lines: lines.collect(),
        addresses,
    });
    for (index, listener) in listeners.into_iter().enumerate() {
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(answer(client, index, Arc::clone(&cluster)));
            }
        });
    }
    // The test harness has written the name of the test to the same line.
    println!("\n{PORTS} {}", ports.join(" "));
    std::future::pending().await
}

struct MadeUpCluster {
    addresses: Vec<SocketAddr>,
    /// The line of each node as the others have it.
    lines: Vec<String>,
}

async fn answer(mut client: TcpStream, me: usize, cluster: Arc<MadeUpCluster>) -> Result<()> {
    let mut decoder = ReplyDecoder::new(1 << 16);
    let mut received = Vec::new();
    while client.read_buf(&mut received).await? > 0 {
        // A command looks like the reply that is a list of strings.
        while let Some((command, length)) = decoder.decode(&received)? {
            let reply = reply(&command, me, &cluster)?;
            drop(command);
            received.drain(..length);
            client.write_all(reply.as_bytes()).await?;
        }
    }
    Ok(())
}

fn reply(command: &Reply<'_>, me: usize, cluster: &MadeUpCluster) -> Result<String> {
    let all = &cluster.addresses;
    let Reply::Array(Some(words)) = command else {
        anyhow::bail!("{command:?}");
    };
    let words = words.iter().map(|word| match word {
        Reply::Bulk(Some(word)) => Ok(String::from_utf8_lossy(word)),
        other => Err(anyhow::anyhow!("{other:?}")),
    });
    let words: Vec<_> = words.collect::<Result<_>>()?;
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    let text = match words.as_slice() {
        ["INFO"] => info(me, all),
        ["CLUSTER", "INFO"] => format!(
            "cluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_slots_ok:16384\r\ncluster_known_nodes:{}\r\ncluster_size:{}\r\ncluster_current_epoch:{}\r\n",
            all.len(),
            all.len() / 2,
            all.len() / 2
        ),
        ["CLUSTER", "NODES"] => {
            let mine = line(me, "myself,", all);
            let (before, after) = (&cluster.lines[..me], &cluster.lines[me + 1..]);
            [&before.concat(), &mine, &after.concat()]
                .map(String::as_str)
                .concat()
        }
        ["CONFIG", "GET", name] => {
            let value = match *name {
                "cluster-node-timeout" => "5000",
                _ => "",
            };
            let (name_length, length) = (name.len(), value.len());
            return Ok(format!(
                "*2\r\n${name_length}\r\n{name}\r\n${length}\r\n{value}\r\n"
            ));
        }
        ["ACL", "LIST"] => {
            let user = "user default on nopass ~* &* +@all";
            return Ok(format!("*1\r\n${}\r\n{user}\r\n", user.len()));
        }
        _ => anyhow::bail!("{words:?}"),
    };
    Ok(format!("${}\r\n{text}\r\n", text.len()))
}

/// A line of CLUSTER NODES as Redis 7.0 writes it: every other node is a replica of the one before. Each primary has two ranges of slots.
fn line(index: usize, myself: &str, all: &[SocketAddr]) -> String {
    let (shard, shards) = (index / 2, all.len() / 2);
    let address = all[index];
    let bus = address.port().wrapping_add(10_000);
    let (role, ranges) = if index.is_multiple_of(2) {
        let edge = |part: usize| part * 16384 / (2 * shards);
        let first = (edge(shard), edge(shard + 1) - 1);
        let second = (edge(shards + shard), edge(shards + shard + 1) - 1);
        let ranges = format!(" {}-{} {}-{}", first.0, first.1, second.0, second.1);
        ("master -".to_owned(), ranges)
    } else {
        (format!("slave {}", id(index - 1)), String::new())
    };
    format!(
        "{} {address}@{bus},shop-{shard}-{}.shop-nodes.team.svc {myself}{role} 0 1700000000000 {} connected{ranges}\n",
        id(index),
        index % 2,
        shard + 1
    )
}

fn id(index: usize) -> String {
    format!("{:040x}", index + 1)
}

/// As long as that of Redis 7.0, which has 190 lines.
fn info(me: usize, all: &[SocketAddr]) -> String {
    let mut text = "redis_version:7.0.15\r\nuptime_in_seconds:1000\r\nloading:0\r\naof_last_write_status:ok\r\n\
                    rdb_last_bgsave_status:ok\r\nmaster_repl_offset:1000\r\n"
        .to_owned();
    let partner = all[me ^ 1];
    let history = format!("{:040x}", me / 2 + 1);
    let role = if me.is_multiple_of(2) {
        format!(
            "role:master\r\nconnected_slaves:1\r\nslave0:ip={},port={},state=online,offset=1000,lag=0\r\n",
            partner.ip(),
            partner.port()
        )
    } else {
        format!(
            "role:slave\r\nmaster_host:{}\r\nmaster_port:{}\r\nmaster_link_status:up\r\nslave_repl_offset:1000\r\n",
            partner.ip(),
            partner.port()
        )
    };
    text += &role;
    let _ = write!(text, "master_replid:{history}\r\n");
    for number in 0..180 {
        let _ = write!(text, "another_fact_of_the_server_{number}:1234567\r\n");
    }
    text
}
