//! `planning`: how long it takes to decide about 500 shards, beside 50. Every node answers with a line about every other one, so that ten
//! times as many shards are a hundred times as many lines, which the processor's caches do not hold any more.

use super::{
    report::{Goal, Measurement, Row},
    rounds, servers,
};
use anyhow::{Context, Result, bail, ensure};
use cluster_controller::redis::{
    assess::assess,
    balance::balance,
    identity::{known_nodes, recognize},
    member::{Answer, ExpectedNode, Member, Report, Wanted, ZoneLabel},
    observe::observe,
    plan::plan,
    reshard::{self, SlotTable, SlotTables},
    survey::Survey,
};
use common::cluster::{
    kept_connections::ClusterConnections,
    slots::{SLOT_COUNT, Slot, SlotSet},
    topology::{NodeAddress, NodeId, NodesView},
};
use k8s_openapi::jiff::Timestamp;
use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

const LARGE: usize = 500;
const SMALL: usize = 50;
const LIMIT: Duration = Duration::from_secs(2);
/// Keys of a slot, and bytes of a key.
const KEYS: u64 = 1000;
const BYTES: u64 = 300;

/// A reconcile's decisions about a healthy cluster without replicas, and the plan of the moves for one shard more.
pub async fn run() -> Result<Vec<Row>> {
    let report = report().await?;
    let (large, small) = (Answers::of(&report, LARGE)?, Answers::of(&report, SMALL)?);
    let (mut decisions, mut moves) = (Vec::new(), Vec::new());
    for round in rounds() {
        let (decided, planned) = (
            Measurement {
                ours: large.decide()?,
                rival: small.decide()?,
            },
            Measurement {
                ours: large.plan_moves()?,
                rival: small.plan_moves()?,
            },
        );
        if round.measured {
            decisions.push(decided);
            moves.push(planned);
        }
    }
    let row = |metric, goal, rounds: &[Measurement]| {
        let rival = "50 shards instead of 500";
        Row::new("planning", metric, rival, Goal::AtMost(goal), rounds)
    };
    Ok(vec![
        row("plan ms", 200.0, &decisions),
        row("moves ms", 10.0, &moves),
    ])
}

/// What one real server with all slots says; the others say the same of themselves.
async fn report() -> Result<Report> {
    let server = servers::sole_primary().await?;
    let address = server.address();
    let expected = [expected(0, NodeAddress::new(address.ip(), address.port()))];
    let member = observe(&expected, &ClusterConnections::default(), LIMIT)
        .await
        .pop();
    let Some(Answer::Report(report)) = member.map(|member| member.answer) else {
        bail!("the server gives no report");
    };
    Ok(*report)
}

/// What the nodes of a cluster answer.
struct Answers {
    members: Vec<Member>,
    wanted: Wanted,
    tables: SlotTables,
    newcomer: NodeId,
}

impl Answers {
    fn of(report: &Report, shards: usize) -> Result<Self> {
        let ids: Vec<NodeId> = (0..=shards).map(id).collect::<Result<_>>()?;
        let slots_of_all: Vec<SlotSet> = (0..shards).map(|shard| slots(shard, shards)).collect();
        let mut members = Vec::with_capacity(shards);
        let mut tables = SlotTables::new();
        for (own, (id, slots)) in ids.iter().zip(&slots_of_all).enumerate() {
            let mut report = report.clone();
            report.view = NodesView::parse(&table(own, &slots_of_all))?;
            report.cluster.known_nodes = u32::try_from(shards)?;
            report.keys = slots.len() as u64 * KEYS;
            members.push(Member {
                expected: expected(own, address(own)),
                answer: Answer::Report(Box::new(report)),
            });
            let keys = slots.iter().map(|slot| (slot, KEYS)).collect();
            let table = SlotTable {
                slots: slots.clone(),
                keys,
                bytes_per_key: BYTES,
                ..SlotTable::default()
            };
            tables.insert(*id, table);
        }
        let newcomer = *ids.last().context("no shard")?;
        tables.insert(newcomer, SlotTable::default());
        let mut wanted = Wanted {
            formed_before: true,
            ..Wanted::new((shards, 0), true, report.node_timeout)
        };
        recognize(&wanted, &mut members);
        wanted.known = known_nodes(&wanted, &members);
        Ok(Self {
            members,
            wanted,
            tables,
            newcomer,
        })
    }

    /// Milliseconds of what a reconcile decides about the nodes.
    fn decide(&self) -> Result<f64> {
        let started = Instant::now();
        let survey = Survey::of(&self.wanted, &self.members);
        let assessment = assess(&survey);
        let steps = plan(&survey, Timestamp::now());
        let balance = balance(&survey);
        let took = started.elapsed();
        ensure!(assessment.is_healthy(), "{:?}", assessment.problems);
        ensure!(
            steps.steps.is_empty() && !balance.needs_moves(),
            "{steps:?}"
        );
        Ok(took.as_secs_f64() * 1000.0)
    }

    /// Milliseconds of the plan for one shard more.
    fn plan_moves(&self) -> Result<f64> {
        let started = Instant::now();
        let plan = reshard::plan(&self.tables, |_| true);
        let took = started.elapsed();
        let moved: usize = plan.moves.iter().map(|one| one.slots.len()).sum();
        let equal = usize::from(SLOT_COUNT) / self.tables.len();
        let to_newcomer = plan.moves.iter().all(|one| one.target == self.newcomer);
        ensure!(to_newcomer && moved == equal, "{moved} instead of {equal}");
        Ok(took.as_secs_f64() * 1000.0)
    }
}

fn id(number: usize) -> Result<NodeId> {
    Ok(format!("{number:040x}").parse()?)
}

fn address(number: usize) -> NodeAddress {
    let [.., high, low] = number.to_be_bytes();
    NodeAddress::new(IpAddr::from(Ipv4Addr::new(10, 0, high, low)), 6379)
}

/// An equal part.
fn slots(shard: usize, shards: usize) -> SlotSet {
    let slots = 0..usize::from(SLOT_COUNT);
    let own = slots.filter(|slot| slot * shards / usize::from(SLOT_COUNT) == shard);
    let slots = own.filter_map(|slot| Slot::new(u16::try_from(slot).ok()?).ok());
    slots.collect()
}

/// `CLUSTER NODES` of one node.
fn table(own: usize, slots: &[SlotSet]) -> String {
    let mut lines = String::new();
    for (number, slots) in slots.iter().enumerate() {
        let (address, myself) = (address(number), if number == own { "myself," } else { "" });
        let bus = address.bus_port;
        let _ = writeln!(
            lines,
            "{number:040x} {address}@{bus} {myself}master - 0 1000 {number} connected {slots}"
        ); // a String takes everything
    }
    lines
}

fn expected(number: usize, address: NodeAddress) -> ExpectedNode {
    ExpectedNode {
        address: Some(address),
        zone: ZoneLabel::Absent,
        ..ExpectedNode::new(format!("bench-{number}-0"), number, 0)
    }
}
