//! Connections to nodes that are kept: what is reported over them is what fresh ones report, within the same time, and no command goes
//! over one on which the server has not just proved its id.

use anyhow::{Context, Result, ensure};
use cluster_controller::redis::{
    execute::execute,
    member::{Answer, ClientSetting, ExpectedNode, Member, Wanted},
    observe::observe,
    plan::{Action, Assignment, HandOverReason, Peer, Plan, PromotedCopy, Step},
};
use common::cluster::{
    kept_connections::{ClusterConnections, KeptConnections},
    node::{FailoverMode, NodeError},
    slots::SlotRange,
    topology::{NodeAddress, NodeId},
};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tests::{
    drive::drive_pods,
    redis::{NODE_TIMEOUT, PodCluster, PodStorage, RedisServer, executed},
    wait::eventually,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, tcp},
};

const TIMEOUT: Duration = Duration::from_secs(1);
/// A node that hangs may take its timeout, and this machine some time; two timeouts would be more.
const BOUND: Duration = Duration::from_millis(1800);
const LIMIT: Duration = Duration::from_secs(40);

/// Looks at a cluster over connections that are kept, and over fresh ones.
struct Looks {
    all: Arc<KeptConnections>,
    kept: ClusterConnections,
}

impl Looks {
    fn new() -> Self {
        let all = Arc::new(KeptConnections::default());
        let kept = all.of(("team", "shop"));
        Self { all, kept }
    }

    /// What is reported, and how long that took.
    async fn look(&self, expected: &[ExpectedNode]) -> (Vec<Member>, Duration) {
        let started = Instant::now();
        let members = observe(expected, &self.kept, TIMEOUT).await;
        (members, started.elapsed())
    }

    /// The first look when a fault has struck: it reports of one node what fresh connections report, and takes no longer than a timeout.
    async fn compare(&self, expected: &[ExpectedNode], index: usize) -> Result<Answer> {
        let (members, took) = self.look(expected).await;
        let fresh = observe(expected, &ClusterConnections::default(), TIMEOUT).await;
        let [kept, fresh] = [members, fresh].map(|members| members[index].answer.clone());
        let shown = [&kept, &fresh].map(identity);
        ensure!(shown[0] == shown[1], "{kept:?}\n{fresh:?}");
        ensure!(took < BOUND, "took {took:?}: {kept:?}");
        Ok(kept)
    }
}

/// What two looks at different moments have in common.
fn identity(answer: &Answer) -> String {
    match answer {
        Answer::Report(report) => format!("{} {}", report.id(), report.proof),
        // Which of two questions went unanswered first is chance.
        Answer::Unresponsive(_) => "unresponsive".to_owned(),
        other => format!("{other:?}"),
    }
}

/// All that a cluster which nothing happens to says again and again.
fn everything(members: &[Member]) -> Vec<String> {
    let shown = members.iter().map(|member| match &member.answer {
        Answer::Report(report) => {
            let (view, cluster, keys) = (&report.view, &report.cluster, report.keys);
            let (server, refusal) = (&report.server.version, &report.refusal);
            format!(
                "{view:?} {cluster:?} {keys} {server} {refusal:?} {}",
                report.proof
            )
        }
        other => format!("{other:?}"),
    });
    shown.collect()
}

async fn formed() -> Result<PodCluster> {
    let cluster = PodCluster::start(0, PodStorage::Volume).await?;
    let wanted = Wanted {
        patience: LIMIT,
        ..Wanted::new((PodCluster::SHARDS, 0), true, NODE_TIMEOUT)
    };
    let formed = drive_pods(&cluster, &wanted, LIMIT).await;
    let problems = &formed.assessment.problems;
    ensure!(formed.assessment.is_healthy(), "{problems:?}");
    Ok(cluster)
}

async fn connections_received(server: &RedisServer) -> Result<u64> {
    Ok(server.info("total_connections_received").await?.parse()?)
}

#[tokio::test]
async fn a_connection_is_used_again_while_its_pod_exists() -> Result<()> {
    let cluster = formed().await?;
    let looks = Looks::new();
    let expected = cluster.expected();
    looks.look(&expected).await;
    ensure!(looks.all.len() == cluster.len());
    let before = connections_received(cluster.server(0)).await?;
    for _ in 0..5 {
        looks.look(&expected).await;
    }
    let more = connections_received(cluster.server(0)).await? - before;
    ensure!(
        more == 1,
        "{more} connections besides that of this question"
    );
    eventually("kept and fresh connections report the same", async || {
        let (kept, _) = looks.look(&expected).await;
        let fresh = observe(&expected, &ClusterConnections::default(), TIMEOUT).await;
        Ok(everything(&kept) == everything(&fresh))
    })
    .await?;
    // One pod is gone; in place of another one there is a new one, which its server does not prove.
    let mut fewer = expected.clone();
    fewer.pop();
    fewer[0].proof = Some("team/shop-0-0/another".into());
    looks.look(&fewer).await;
    ensure!(looks.all.len() == cluster.len() - 2);
    looks.look(&expected).await;
    ensure!(looks.all.len() == cluster.len());
    // It is too old by then.
    looks.all.close_old(Instant::now() + Duration::from_mins(1));
    ensure!(looks.all.len() == cluster.len());
    looks.all.close_old(Instant::now() + Duration::from_mins(3));
    ensure!(looks.all.is_empty());
    looks.look(&expected).await;
    looks.all.forget("team", "shop");
    ensure!(looks.all.is_empty());
    Ok(())
}

#[tokio::test]
async fn faults_are_reported_as_by_fresh_connections() -> Result<()> {
    let mut cluster = formed().await?;
    let looks = Looks::new();
    let expected = cluster.expected();
    looks.look(&expected).await;
    // Ended, and started again at its address: with and without a look in between.
    cluster.kill(1).await?;
    let down = looks.compare(&expected, 1).await?;
    ensure!(matches!(down, Answer::Unresponsive(_)), "{down:?}");
    cluster.restart(1).await?;
    let back = looks.compare(&expected, 1).await?;
    ensure!(matches!(back, Answer::Report(_)), "{back:?}");
    cluster.kill(1).await?;
    cluster.restart(1).await?;
    let back = looks.compare(&expected, 1).await?;
    ensure!(matches!(back, Answer::Report(_)), "{back:?}");
    ensure!(looks.all.len() == cluster.len());
    // It hangs.
    cluster.server(1).suspend(true)?;
    let hangs = looks.compare(&expected, 1).await?;
    ensure!(matches!(hangs, Answer::Unresponsive(_)), "{hangs:?}");
    cluster.server(1).suspend(false)?;
    let back = looks.compare(&expected, 1).await?;
    ensure!(matches!(back, Answer::Report(_)), "{back:?}");
    // A slow answer is an answer.
    cluster.server(1).suspend(true)?;
    let server = cluster.server(1);
    let slow = async {
        tokio::time::sleep(TIMEOUT * 7 / 10).await;
        server.suspend(false)
    };
    let (seen, resumed) = tokio::join!(looks.look(&expected), slow);
    resumed?;
    let (members, took) = seen;
    ensure!(members[1].report().is_some(), "{took:?}: {:?}", members[1]);
    Ok(())
}

/// Kubernetes gives the address of a pod to a pod of another cluster, and the status of the first one does not show it yet.
#[tokio::test]
async fn a_foreign_server_at_the_address_is_seen_at_once() -> Result<()> {
    let mut cluster = formed().await?;
    let looks = Looks::new();
    let expected = cluster.expected();
    looks.look(&expected).await;
    cluster.kill(1).await?;
    let mut foreign = RedisServer::cluster_node(&[]).await?;
    foreign.kill()?;
    foreign.set_address(cluster.server(1).address());
    foreign.restart().await?;
    let found = looks.compare(&expected, 1).await?;
    let Answer::Report(report) = found else {
        anyhow::bail!("{found:?}");
    };
    ensure!(report.id() == foreign.id().await?);
    ensure!(Some(&report.proof) != expected[1].proof.as_ref());
    ensure!(looks.all.len() == cluster.len() - 1, "it is not kept");
    Ok(())
}

/// A network in between, of which connections can be cut off without either side noticing.
struct Network {
    address: SocketAddr,
    made: Arc<AtomicUsize>,
    /// Connections before this number let nothing through.
    cut: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Network {
    async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let [made, cut] = [0, 0].map(|number| Arc::new(AtomicUsize::new(number)));
        let (counter, limit) = (Arc::clone(&made), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(server).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let there = copy(from_client, to_server, number, Arc::clone(&limit));
                let back = copy(from_server, to_client, number, Arc::clone(&limit));
                tokio::spawn(async move { tokio::join!(there, back) });
            }
        });
        Ok(Self {
            address,
            made,
            cut,
            task,
        })
    }

    /// Cuts off the connections that there are, and this many more.
    fn cut(&self, more: usize) {
        let made = self.made.load(Ordering::SeqCst);
        self.cut.store(made.saturating_add(more), Ordering::SeqCst);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn copy(
    mut from: tcp::OwnedReadHalf,
    mut to: tcp::OwnedWriteHalf,
    number: usize,
    cut: Arc<AtomicUsize>,
) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let lost = number < cut.load(Ordering::SeqCst);
        if !lost && to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_connection_that_only_one_side_knows_costs_no_answer() -> Result<()> {
    let cluster = formed().await?;
    let network = Network::to(cluster.server(1).address()).await?;
    let looks = Looks::new();
    let mut expected = cluster.expected();
    expected[1].address = Some(NodeAddress::new(
        network.address.ip(),
        network.address.port(),
    ));
    looks.look(&expected).await;
    ensure!(looks.all.len() == cluster.len());
    network.cut(0);
    let found = looks.compare(&expected, 1).await?;
    ensure!(matches!(found, Answer::Report(_)), "{found:?}");
    // The fresh one is kept instead.
    let made = network.made.load(Ordering::SeqCst);
    let (members, _) = looks.look(&expected).await;
    ensure!(members[1].report().is_some());
    ensure!(network.made.load(Ordering::SeqCst) == made);
    // Nothing comes through any more.
    network.cut(100);
    let silent = looks.compare(&expected, 1).await?;
    ensure!(matches!(silent, Answer::Unresponsive(_)), "{silent:?}");
    Ok(())
}

/// Three servers that do not know each other, as the controller expects them.
async fn three() -> Result<(Vec<RedisServer>, Vec<ExpectedNode>)> {
    let (mut servers, mut expected) = (Vec::new(), Vec::new());
    for shard in 0..3 {
        let proof = format!("team/shop-{shard}-0/uid");
        let server = RedisServer::cluster_node(&[("syslog-ident", &proof)]).await?;
        let address = server.address();
        servers.push(server);
        expected.push(ExpectedNode {
            address: Some(NodeAddress::new(address.ip(), address.port())),
            proof: Some(proof),
            ..ExpectedNode::new(format!("shop-{shard}-0"), shard, 0)
        });
    }
    Ok((servers, expected))
}

const KINDS: usize = 9;

/// Numbers the actions, so that none is missing below.
fn kind(action: &Action) -> usize {
    match action {
        Action::AssignSlots { .. } => 0,
        Action::Meet { .. } => 1,
        Action::Promote { .. } => 2,
        Action::HandOver { .. } => 3,
        Action::Admit { .. } => 4,
        Action::Replicate { .. } => 5,
        Action::RestoreNodeTimeout { .. } => 6,
        Action::TellClients { .. } => 7,
        Action::Forget { .. } => KINDS - 1,
    }
}

/// A server that was reset has another id, and its connections stay open.
#[tokio::test]
async fn no_command_goes_to_a_server_with_another_id() -> Result<()> {
    let (servers, expected) = three().await?;
    let looks = Looks::new();
    let (members, _) = looks.look(&expected).await;
    let ids: Vec<NodeId> = members
        .iter()
        .map(|member| Ok(member.report().context("no report")?.id()))
        .collect::<Result<_>>()?;
    servers[1].call::<()>("CLUSTER RESET HARD").await?;
    let peer = Peer {
        id: ids[1],
        address: expected[1].address.context("no address")?,
    };
    let actions = [
        Action::Meet {
            member: 0,
            others: vec![peer],
            first_contact: true,
        },
        Action::Meet {
            member: 1,
            others: vec![],
            first_contact: true,
        },
        Action::Forget {
            id: ids[2],
            on: vec![1],
        },
        Action::Promote {
            member: 1,
            primary: ids[2],
            mode: FailoverMode::Takeover,
            unheard: Vec::new(),
            copy: PromotedCopy::Held,
        },
        Action::Admit { member: 1 },
        Action::Replicate {
            member: 1,
            primary: ids[0],
            formation_node_timeout: Some(NODE_TIMEOUT / 2),
        },
        Action::AssignSlots {
            member: 1,
            ranges: vec![SlotRange::ALL],
            how: Assignment::Joined,
        },
        Action::HandOver {
            to: 1,
            from: 0,
            reason: HandOverReason::Spread,
        },
        Action::RestoreNodeTimeout {
            member: 1,
            node_timeout: NODE_TIMEOUT * 2,
        },
        Action::TellClients {
            member: 1,
            setting: ClientSetting::Hostname,
            value: "shop-1-0".into(),
        },
    ];
    let kinds: BTreeSet<usize> = actions.iter().map(kind).collect();
    ensure!(kinds.into_iter().eq(0..KINDS), "an action is missing");
    for action in actions {
        // So that there is a connection which was kept.
        looks.look(&expected).await;
        ensure!(looks.all.len() == servers.len());
        let step = Step {
            action,
            reason: "it is tried".into(),
        };
        let plan = Plan {
            steps: vec![step],
            blockers: Vec::new(),
        };
        for done in execute(&plan, &members, &looks.kept, TIMEOUT).await {
            let wrong = matches!(done.result, Err(NodeError::WrongNode { .. }));
            ensure!(wrong, "{done:?}");
        }
    }
    for server in &servers {
        let sent = executed(server).await?;
        for command in [
            "cluster|meet",
            "cluster|forget",
            "cluster|failover",
            "cluster|replicate",
            "cluster|addslots",
            "cluster|addslotsrange",
            "acl|setuser",
            "config|set",
        ] {
            let address = server.address();
            ensure!(!sent.contains_key(command), "{address} was sent {command}");
        }
    }
    // To the right ones it goes, over connections that are kept.
    let (members, _) = looks.look(&expected).await;
    let before = connections_received(&servers[0]).await?;
    let others = [1, 2].map(|index| {
        let report = members[index].report().context("no report")?;
        let address = expected[index].address.context("no address")?;
        anyhow::Ok(Peer {
            id: report.id(),
            address,
        })
    });
    let step = Step {
        action: Action::Meet {
            member: 0,
            others: others.into_iter().collect::<Result<_>>()?,
            first_contact: true,
        },
        reason: "they are to know each other".into(),
    };
    let plan = Plan {
        steps: vec![step],
        blockers: Vec::new(),
    };
    for done in execute(&plan, &members, &looks.kept, TIMEOUT).await {
        done.result?;
    }
    ensure!(executed(&servers[0]).await?.contains_key("cluster|meet"));
    let more = connections_received(&servers[0]).await? - before;
    ensure!(more == 2, "{more} connections besides those of this test");
    Ok(())
}
