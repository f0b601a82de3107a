//! `reshard`: 2,000 slots with 61 keys of about 200 bytes each move from one primary to another, against `redis-cli --cluster reshard`.

use super::{
    report::{Goal, Measurement, Row},
    rounds, servers,
};
use crate::{redis::RedisServer, wait::eventually};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::reshard::{
    NodeEndpoints, ReshardLimits, ReshardPlan, ReshardProgress, SlotMove, run,
};
use common::cluster::{
    endpoint::Endpoint,
    slots::{Slot, SlotRange, SlotSet},
    topology::NodeId,
};
use futures::future::try_join_all;
use std::time::{Duration, Instant};
use tokio::{process::Command, sync::watch};
use tokio_util::sync::CancellationToken;

const SLOTS: u16 = 2_000;
const KEYS_PER_SLOT: u64 = 61;
const VALUE: u64 = 180;
const LIMIT: Duration = Duration::from_secs(5);

/// Each side moves the slots in its turn, there and back again: both ways are alike.
pub async fn run_case() -> Result<Vec<Row>> {
    let own = std::process::id().to_string();
    let cores = std::fs::read_to_string("/proc/self/status")?;
    let cores = cores
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let cores = cores.context("no list of cores")?.trim();
    let rows = measured().await;
    // The other cases have all cores again.
    run_on(cores, &own).await?;
    rows
}

async fn measured() -> Result<Vec<Row>> {
    let mut pair = Pair::start().await?;
    let (mut default, mut pipelined) = (Vec::new(), Vec::new());
    let mut block = Vec::new();
    for round in rounds() {
        let mut figures = [Figures::default(); 3];
        let order = if round.ours_first {
            [Side::Ours, Side::Default, Side::Pipelined]
        } else {
            [Side::Pipelined, Side::Default, Side::Ours]
        };
        for side in order {
            figures[side as usize] = pair.measure(side).await?;
        }
        println!("{figures:?}");
        let [ours, plain, pipeline] = figures;
        if round.measured {
            let rates = |rival: Figures| Measurement {
                ours: ours.keys_per_second,
                rival: rival.keys_per_second,
            };
            default.push(rates(plain));
            pipelined.push(rates(pipeline));
            block.push(Measurement {
                ours: ours.block.as_secs_f64() * 1000.0,
                rival: pipeline.block.as_secs_f64() * 1000.0,
            });
        }
    }
    let row = |metric, rival, goal, rounds: &[Measurement]| {
        Row::new("reshard", metric, rival, goal, rounds)
    };
    let pipeline = "redis-cli --cluster reshard --cluster-pipeline 100";
    Ok(vec![
        row(
            "keys/s",
            "redis-cli --cluster reshard",
            Goal::AtLeast(2.5),
            &default,
        ),
        row("keys/s", pipeline, Goal::AtLeast(1.6), &pipelined),
        row("block ms", pipeline, Goal::AtMost(0.5), &block),
    ])
}

#[derive(Clone, Copy, Debug)]
enum Side {
    Ours,
    Default,
    Pipelined,
}

/// What one move of the slots was like.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    keys_per_second: f64,
    /// The longest command that the source carried out, by its own measurement.
    block: Duration,
}

/// Binds all threads of a process to cores. A client that takes the core of a server from it while the other server waits for its answer
/// makes calls of milliseconds, whatever they carry: servers have one core, and both clients another one.
async fn run_on(cores: &str, process: &str) -> Result<()> {
    let arguments = ["--all-tasks", "--pid", "--cpu-list", cores, process];
    schedule("taskset", &arguments).await
}

/// Lets nothing else that the machine does take the core from a server in the middle of a call.
async fn go_first(process: &str) -> Result<()> {
    schedule("renice", &["--priority", "-20", "--pid", process]).await
}

async fn schedule(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().await?;
    let problem = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed: {problem}");
    Ok(())
}

/// Two primaries that have the slots in turn, and one with the others.
struct Pair {
    nodes: Vec<RedisServer>,
    ids: Vec<NodeId>,
    /// Which of the two has the slots.
    holder: usize,
}

impl Pair {
    async fn start() -> Result<Self> {
        let options = [
            ("cluster-node-timeout", "15000"),
            ("cluster-allow-replica-migration", "no"),
            ("latency-tracking-info-percentiles", "100 99 50"),
            ("activerehashing", "no"),
        ];
        let mut nodes = try_join_all((0..3).map(|_| RedisServer::cluster_node(&options))).await?;
        nodes.iter_mut().for_each(RedisServer::quiet);
        let [source, target, other] = nodes.as_slice() else {
            bail!("{} servers", nodes.len());
        };
        for node in [source, target] {
            let process = node.info("process_id").await?;
            run_on("0", &process).await?;
            go_first(&process).await?;
        }
        run_on("1", &other.info("process_id").await?).await?;
        run_on("1", &std::process::id().to_string()).await?;
        for (node, range) in [(0, "0 1999"), (2, "2000 16383")] {
            let epoch = node + 1;
            nodes[node]
                .call::<()>(&format!("CLUSTER SET-CONFIG-EPOCH {epoch}"))
                .await?;
            nodes[node]
                .call::<()>(&format!("CLUSTER ADDSLOTSRANGE {range}"))
                .await?;
        }
        for node in &nodes[1..] {
            let (ip, port) = (node.address().ip(), node.address().port());
            nodes[0]
                .call::<()>(&format!("CLUSTER MEET {ip} {port}"))
                .await?;
        }
        for node in &nodes {
            eventually("every node serves", async || {
                let info: String = node.call("CLUSTER INFO").await?;
                Ok(info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3"))
            })
            .await?;
        }
        let mut ids = Vec::new();
        for node in &nodes {
            ids.push(node.call::<String>("CLUSTER MYID").await?.parse()?);
        }
        let pair = Self {
            nodes,
            ids,
            holder: 0,
        };
        pair.fill().await?;
        Ok(pair)
    }

    async fn fill(&self) -> Result<()> {
        let tags = tags()?;
        let mut connection = self.nodes[0].connect().await?;
        for part in tags.chunks(100) {
            let mut commands = redis::pipe();
            for (tag, key) in part
                .iter()
                .flat_map(|tag| (0..KEYS_PER_SLOT).map(move |key| (tag, key)))
            {
                let text = crate::dataset::json_text(key, VALUE);
                let command = commands.cmd("SET");
                command.arg(format!("{{{tag}}}{key}")).arg(text).ignore();
            }
            commands.query_async::<()>(&mut connection).await?;
        }
        self.complete().await
    }

    /// Every key is at the node that has the slots, and every node agrees.
    async fn complete(&self) -> Result<()> {
        let held: u64 = self.nodes[self.holder].call("DBSIZE").await?;
        let wanted = u64::from(SLOTS) * KEYS_PER_SLOT;
        ensure!(held == wanted, "{held} keys instead of {wanted}");
        let id = self.ids[self.holder];
        for node in &self.nodes {
            eventually("every node agrees on the slots", async || {
                let table: String = node.call("CLUSTER NODES").await?;
                let line = table.lines().find(|line| line.starts_with(&id.to_string()));
                Ok(line.is_some_and(|line| line.ends_with(" 0-1999")) && !table.contains('['))
            })
            .await?;
        }
        Ok(())
    }

    /// Lets one side move the slots to the other node.
    async fn measure(&mut self, side: Side) -> Result<Figures> {
        let (source, target) = (self.holder, 1 - self.holder);
        self.nodes[source].call::<()>("CONFIG RESETSTAT").await?;
        let started = Instant::now();
        match side {
            Side::Ours => self.ours(source, target).await?,
            Side::Default => self.rival(source, target, &[]).await?,
            Side::Pipelined => {
                self.rival(source, target, &["--cluster-pipeline", "100"])
                    .await?;
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        let block = longest_command(&self.nodes[source]).await?;
        self.holder = target;
        self.complete().await?;
        #[allow(clippy::cast_precision_loss)] // 61
        let keys = f64::from(SLOTS) * KEYS_PER_SLOT as f64;
        Ok(Figures {
            keys_per_second: keys / seconds,
            block,
        })
    }

    async fn ours(&self, source: usize, target: usize) -> Result<()> {
        let slots: SlotSet = SlotRange::new(Slot::MIN, Slot::new(SLOTS - 1)?)?.into();
        let plan = ReshardPlan {
            moves: vec![SlotMove {
                source: self.ids[source],
                target: self.ids[target],
                slots,
            }],
            ..ReshardPlan::default()
        };
        let servers = self.nodes.iter();
        let endpoints = servers.map(|server| Endpoint::new(server.address(), LIMIT));
        let nodes: NodeEndpoints = self.ids.iter().copied().zip(endpoints).collect();
        let (progress, _) = watch::channel(ReshardProgress::default());
        let limits = ReshardLimits::default();
        let summary = run(&plan, &nodes, &limits, &CancellationToken::new(), &progress).await?;
        ensure!(
            summary.progress.slots_done == u64::from(SLOTS),
            "{summary:?}"
        );
        Ok(())
    }

    async fn rival(&self, source: usize, target: usize, options: &[&str]) -> Result<()> {
        let address = self.nodes[source].address();
        let mut command = servers::redis_cli(address);
        command
            .args(["--cluster", "reshard", &address.to_string()])
            .args(["--cluster-from", &self.ids[source].to_string()])
            .args(["--cluster-to", &self.ids[target].to_string()])
            .args(["--cluster-slots", &SLOTS.to_string(), "--cluster-yes"])
            .args(options);
        let status = command.status().await?;
        ensure!(status.success(), "redis-cli --cluster reshard failed");
        Ok(())
    }
}

/// `INFO latencystats` has percentiles of each command: of all its calls is the longest one.
async fn longest_command(server: &RedisServer) -> Result<Duration> {
    let text: String = server.call("INFO latencystats").await?;
    let times = text.lines().filter_map(|line| {
        let (_, times) = line.split_once(":p100=")?;
        let (micros, _) = times.split_once(',')?;
        Some((micros.parse::<f64>().ok()?, line))
    });
    let longest = times.max_by(|(one, _), (other, _)| one.total_cmp(other));
    let (micros, line) = longest.with_context(|| format!("no times of commands in {text:?}"))?;
    println!("{line}");
    Ok(Duration::from_secs_f64(micros / 1_000_000.0))
}

/// For each of the slots a hash tag.
fn tags() -> Result<Vec<String>> {
    let mut tags = vec![None; usize::from(SLOTS)];
    let mut missing = tags.len();
    for number in 0_u64.. {
        let tag = format!("{number}");
        if let Some(place) = tags.get_mut(Slot::of_key(tag.as_bytes()).index())
            && place.is_none()
        {
            *place = Some(tag);
            missing -= 1;
        }
        if missing == 0 {
            break;
        }
    }
    tags.into_iter()
        .collect::<Option<Vec<String>>>()
        .context("a slot without a tag")
}
