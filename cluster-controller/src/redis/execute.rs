//! Does the steps of a plan: neighbours of one kind at the same time, kind after kind; after a failure no further kind.

use super::{
    failover::{hand_over, take_over, view},
    member::Member,
    observe::process,
    plan::{Action, Assignment, Peer, Plan, Step},
    survey::Index,
    users::DEFAULT,
};
use common::cluster::{
    kept_connections::ClusterConnections,
    node::{FailoverMode, NodeClient, NodeError},
    slots::{SlotRange, SlotSet},
    topology::NodeId,
};
use futures::{StreamExt, stream};
use redis::{Cmd, Pipeline, cmd, pipe};
use std::{mem::discriminant, time::Duration};

/// Steps done at the same time.
const CONCURRENCY: usize = 64;

/// A step and how it ended.
#[derive(Debug)]
pub struct Done {
    /// The step.
    pub step: Step,
    /// How it ended.
    pub result: Result<(), NodeError>,
}

/// Does the steps. Those after a failed kind are left out: the next plan has them again if they are still right.
pub async fn execute(
    plan: &Plan,
    members: &[Member],
    connections: &ClusterConnections,
    timeout: Duration,
) -> Vec<Done> {
    let nodes = Nodes {
        members,
        connections,
        timeout,
    };
    let mut done = Vec::with_capacity(plan.steps.len());
    for kind in plan
        .steps
        .chunk_by(|a, b| discriminant(&a.action) == discriminant(&b.action))
    {
        let results: Vec<Done> = stream::iter(kind.iter().cloned())
            .map(|step| async move {
                let result = act(&step.action, nodes).await;
                match &result {
                    Ok(()) => tracing::info!(step = ?step.action, why = step.reason, "step done"),
                    Err(error) => tracing::info!(step = ?step.action, %error, "step failed"),
                }
                Done { step, result }
            })
            .buffered(CONCURRENCY)
            .collect()
            .await;
        let failed = results.iter().any(|one| one.result.is_err());
        done.extend(results);
        if failed {
            break;
        }
    }
    done
}

/// The nodes that were observed, and how they are reached.
#[derive(Clone, Copy)]
struct Nodes<'a> {
    members: &'a [Member],
    connections: &'a ClusterConnections,
    timeout: Duration,
}

impl Nodes<'_> {
    /// Connects to the node that was observed, and to no other: its server proves its id first. None: it is not there any more, so there
    /// is nothing to do.
    async fn connect(&self, index: Index) -> Result<Option<NodeClient>, NodeError> {
        let member = self.members.get(index);
        let observed = member.and_then(|one| Some((one.expected.address?, one.report()?.id())));
        match observed {
            Some((address, id)) => self.prove(Peer { id, address }).await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether this node and no other is reached by connecting to the address now: only then other nodes are to connect there.
    async fn prove_address(&self, Peer { id, address }: Peer) -> Result<(), NodeError> {
        let endpoint = self.connections.endpoint(address.client(), self.timeout);
        let endpoint = endpoint.expecting(id);
        NodeClient::connect(&endpoint).await.map(drop)
    }

    /// As which user replicas log in to a node: its server has known that from its start.
    fn login_of_replicas(&self, index: Index) -> &'static str {
        let report = self.members.get(index).and_then(Member::report);
        report.map_or(DEFAULT, |report| report.users.of_replicas())
    }

    /// The proof is of this moment, also where the connection was open already.
    async fn prove(&self, Peer { id, address }: Peer) -> Result<NodeClient, NodeError> {
        let mut members = self.members.iter();
        let member = members.find(|one| one.expected.address == Some(address));
        let process = member.and_then(|one| process(&one.expected));
        let endpoint = self.connections.endpoint(address.client(), self.timeout);
        let endpoint = endpoint.expecting(id);
        self.connections.proven(process.as_ref(), &endpoint).await
    }
}

/// Lets no primary accept writes for a while: their replicas get all that was acknowledged before both are stopped. A server that
/// cannot do it (`CLIENT PAUSE … WRITE` came with 6.2) or does not answer is left to its own shutdown, which waits for replicas from 7.0 on.
pub async fn pause_writes(
    members: &[Member],
    connections: &ClusterConnections,
    how_long: Duration,
    timeout: Duration,
) {
    let nodes = Nodes {
        members,
        connections,
        timeout,
    };
    let primary = |member: &Member| {
        let report = member.report()?;
        let serves = report.own().is_primary() && !report.own().slots.is_empty();
        let (id, address) = (report.id(), member.expected.address?);
        serves.then_some(Peer { id, address })
    };
    let primaries: Vec<Peer> = members.iter().filter_map(primary).collect();
    let mut pause = cmd("CLIENT");
    pause
        .arg("PAUSE")
        .arg(how_long.as_millis().to_string())
        .arg("WRITE");
    let pause = &pause;
    stream::iter(primaries)
        .for_each_concurrent(CONCURRENCY, |primary| async move {
            let paused = async {
                let node = nodes.prove(primary).await?;
                node.ask::<()>("CLIENT PAUSE", pause).await
            };
            if let Err(error) = paused.await {
                tracing::info!(%error, "writes were not paused");
            }
        })
        .await;
}

async fn act(action: &Action, nodes: Nodes<'_>) -> Result<(), NodeError> {
    match action {
        Action::AssignSlots {
            member,
            ranges,
            how,
        } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            let by_range = knows_ranges(nodes.members, *member);
            let replicas = nodes.login_of_replicas(*member);
            assign(&node, ranges, how, (by_range, replicas)).await
        }
        Action::Meet { member, others, .. } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            meet(&node, others, nodes).await
        }
        Action::Promote {
            member,
            primary,
            mode,
            unheard,
            ..
        } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            match mode {
                FailoverMode::Takeover => take_over(&node, *primary).await?,
                FailoverMode::Force | FailoverMode::Coordinated => node.failover(*mode).await?,
            }
            if unheard.is_empty() {
                return Ok(());
            }
            let by_range = knows_ranges(nodes.members, *member);
            let replicas = nodes.login_of_replicas(*member);
            claim(&node, unheard, (by_range, replicas)).await
        }
        Action::HandOver { to, .. } => {
            let Some(node) = nodes.connect(*to).await? else {
                return Ok(());
            };
            hand_over(&node).await
        }
        Action::Admit { member } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            admit(&node, nodes.login_of_replicas(*member)).await
        }
        Action::Replicate {
            member,
            primary,
            formation_node_timeout,
        } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            admit(&node, nodes.login_of_replicas(*member)).await?;
            if let Some(formation_node_timeout) = formation_node_timeout {
                set_node_timeout(&node, *formation_node_timeout).await?;
            }
            node.replicate(*primary).await
        }
        Action::RestoreNodeTimeout {
            member,
            node_timeout,
        } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            set_node_timeout(&node, *node_timeout).await
        }
        Action::TellClients {
            member,
            setting,
            value,
        } => {
            let Some(node) = nodes.connect(*member).await? else {
                return Ok(());
            };
            node.config_set(setting.name(), value).await
        }
        Action::Forget { id, on } => forget(*id, on, nodes).await,
    }
}

async fn set_node_timeout(node: &NodeClient, node_timeout: Duration) -> Result<(), NodeError> {
    let value = node_timeout.as_millis().to_string();
    node.config_set("cluster-node-timeout", &value).await
}

/// `ADDSLOTSRANGE` and `DELSLOTSRANGE` came with 7.0.
fn knows_ranges(members: &[Member], index: Index) -> bool {
    members
        .get(index)
        .and_then(Member::report)
        .is_some_and(|report| report.server.at_least(7, 0))
}

/// A node that starts without a memory of its own (no nodes.conf) refuses to feed replicas until it has been given a role: the
/// replica of a primary that has come back empty at the same address must not copy the emptiness. See `build::start_script`.
fn admission(user: &str) -> Cmd {
    let mut command = cmd("ACL");
    command.arg("SETUSER").arg(user).arg("+psync");
    command
}

async fn admit(node: &NodeClient, replicas: &str) -> Result<(), NodeError> {
    node.ask("ACL SETUSER", &admission(replicas)).await
}

async fn assign(
    node: &NodeClient,
    ranges: &[SlotRange],
    how: &Assignment,
    (by_range, replicas): (bool, &str),
) -> Result<(), NodeError> {
    let mut commands = pipe();
    match how {
        Assignment::Alone {
            epoch,
            formation_node_timeout,
        } => {
            if let Some(formation_node_timeout) = formation_node_timeout {
                let value = formation_node_timeout.as_millis().to_string();
                commands
                    .cmd("CONFIG")
                    .arg("SET")
                    .arg("cluster-node-timeout")
                    .arg(value);
            }
            commands.cmd("CLUSTER").arg("SET-CONFIG-EPOCH").arg(*epoch);
            add(&mut commands, "ADDSLOTS", ranges, by_range);
        }
        Assignment::Joined => add(&mut commands, "ADDSLOTS", ranges, by_range),
        // In one transaction: between the commands the node must not gossip a claim with an old epoch.
        Assignment::Recreated { listed } | Assignment::Restored { listed } => {
            commands.atomic();
            if !listed.is_empty() {
                add(&mut commands, "DELSLOTS", listed, by_range);
            }
            add(&mut commands, "ADDSLOTS", ranges, by_range);
            commands.cmd("CLUSTER").arg("BUMPEPOCH");
        }
    }
    admit(node, replicas).await?;
    let _replies: Vec<redis::Value> = node.ask_all("CLUSTER ADDSLOTS", &commands).await?;
    Ok(())
}

/// Claims slots that the node's own table may list with others. A server answers a takeover once it is a primary.
async fn claim(
    node: &NodeClient,
    slots: &[SlotRange],
    (by_range, replicas): (bool, &str),
) -> Result<(), NodeError> {
    let view = view(node).await?;
    let wanted: SlotSet = slots.iter().copied().collect();
    let missing = wanted.difference(&view.myself().slots);
    if missing.is_empty() {
        return Ok(());
    }
    let nodes = view.nodes().iter();
    let listed = nodes.fold(SlotSet::new(), |all, other| all.union(&other.slots));
    let how = Assignment::Restored {
        listed: listed.intersection(&missing).ranges(),
    };
    assign(node, &missing.ranges(), &how, (by_range, replicas)).await
}

fn add(commands: &mut Pipeline, what: &str, ranges: &[SlotRange], by_range: bool) {
    let command = commands.cmd("CLUSTER");
    if by_range {
        command.arg(format!("{what}RANGE"));
        for range in ranges {
            command.arg(range.start().get()).arg(range.end().get());
        }
    } else {
        command.arg(what);
        for slot in ranges.iter().flat_map(|range| range.slots()) {
            command.arg(slot.get());
        }
    }
}

/// Introduces those that prove their ids; then says why another one was left out.
async fn meet(node: &NodeClient, others: &[Peer], nodes: Nodes<'_>) -> Result<(), NodeError> {
    let proofs: Vec<(Peer, Result<(), NodeError>)> = stream::iter(others.iter().copied())
        .map(|peer| async move { (peer, nodes.prove_address(peer).await) })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    let mut commands = pipe();
    let mut refused = Ok(());
    for (Peer { address, .. }, proof) in proofs {
        match proof {
            Ok(()) => {
                let command = commands.cmd("CLUSTER").arg("MEET");
                command.arg(address.ip.to_string());
                command.arg(address.port).arg(address.bus_port);
            }
            Err(error) => refused = Err(error),
        }
    }
    if !commands.is_empty() {
        node.ask_all::<()>("CLUSTER MEET", &commands).await?;
    }
    refused
}

/// On all nodes at once. A node that has forgotten it already is content.
async fn forget(id: NodeId, on: &[Index], nodes: Nodes<'_>) -> Result<(), NodeError> {
    let results: Vec<Result<(), NodeError>> = stream::iter(on.iter().copied())
        .map(|index| async move {
            let Some(node) = nodes.connect(index).await? else {
                return Ok(());
            };
            match node.forget(id).await {
                Err(error)
                    if error
                        .refusal()
                        .is_some_and(|text| text.contains("Unknown node")) =>
                {
                    Ok(())
                }
                result => result,
            }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    results.into_iter().collect()
}
