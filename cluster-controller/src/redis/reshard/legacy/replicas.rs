//! Before slots are handed over: waits until the replicas of both nodes have what their primaries did with the keys.
//!
//! Until those of the target have the keys, its loss would cost them; and until those of the source have dropped them, one that took over
//! would have keys that clients may have deleted since. So each node that the primary's table has as its replica must be attached and confirm, also
//! one that the primary has just dropped; and each other node that is attached, which the table will have in a moment. One that hangs is waited for
//! until the primary does not hear of it any more. What copies the primary and is no node of the cluster (a reader, a backup) takes over from no one.
//!
//! A shard that is too busy to be copied is relieved all the same: a replica of the source that is not attached is waited for once.

use crate::redis::reshard::{
    error::ReshardError,
    nodes::{NodeLink, ReplicaTable},
};
use common::cluster::{
    info::{AttachedReplica, Info, ReplicationInfo},
    topology::{NodeAddress, NodesView},
};
use redis::cmd;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long replicas that are alive may take. The slots stay open after that, and the next plan finishes them.
const CONFIRMATION: Duration = Duration::from_secs(10);
/// Those that have not confirmed after so long may hang: the primary is asked whether it hears of them. It is asked again as often.
const DOUBT: Duration = Duration::from_millis(100);
/// How long the primary's table holds: what is attached is asked for each group of slots.
const HOLDS: Duration = Duration::from_secs(1);
/// How long a question for what they have may block the connection over which everything else is asked.
const QUESTION: Duration = Duration::from_millis(2);

/// Waits for the replicas of a target to confirm all that it has written so far.
pub(super) async fn copied(node: &NodeLink) -> Result<(), ReshardError> {
    let mut known = node.replicas.lock().await;
    let late = wait(node, &mut known).await?;
    late.first().map_or(Ok(()), |late| Err(late.error(node)))
}

/// The same for a source, without those that are not attached and that it has waited for already.
pub(super) async fn dropped(node: &NodeLink) -> Result<(), ReshardError> {
    let mut known = node.replicas.lock().await;
    for late in wait(node, &mut known).await? {
        if late.attached {
            return Err(late.error(node));
        }
        tracing::info!(node = %node.id, replica = %late.replica, "slots are given away without a replica that is not attached");
        known.absent.insert(late.replica);
    }
    Ok(())
}

/// A replica that has not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LateReplica {
    replica: SocketAddr,
    /// Whether it receives what its primary writes.
    attached: bool,
}

impl LateReplica {
    fn error(self, node: &NodeLink) -> ReshardError {
        let (node, replica) = (node.id, self.replica);
        if self.attached {
            ReshardError::ReplicasBehind { node, replica }
        } else {
            ReshardError::ReplicaNotAttached { node, replica }
        }
    }
}

/// Those that are late in the end.
async fn wait(node: &NodeLink, known: &mut ReplicaTable) -> Result<Vec<LateReplica>, ReshardError> {
    let begun = Instant::now();
    let mut found = replication(node).await?;
    let goal = found.offset;
    let mut fresh = HOLDS;
    loop {
        let view = table(node, known, fresh).await?;
        let mut late = late(view, &found, goal);
        late.retain(|one| one.attached || !known.absent.contains(&one.replica));
        if late.is_empty() || begun.elapsed() >= CONFIRMATION {
            return Ok(late);
        }
        if begun.elapsed() >= DOUBT {
            fresh = DOUBT;
        }
        // Makes them confirm at once. What it returns says nothing: from 7.2 on it counts only writes of this connection, which has none. So
        // that it does not return before they were asked, it waits for one more than there are.
        let mut wait = cmd("WAIT");
        wait.arg(found.replicas.len() + 1)
            .arg(QUESTION.as_millis().to_string());
        let _confirmed: i64 = node.ask("WAIT", &wait).await?;
        found = replication(node).await?;
    }
}

/// The replicas that their primary hears of and that have not confirmed this much.
fn late(view: &NodesView, found: &ReplicationInfo, goal: u64) -> Vec<LateReplica> {
    let confirmed = |one: &AttachedReplica| one.online && one.offset >= goal;
    let addresses = view.others().filter_map(|node| node.address.as_ref());
    let addresses: BTreeSet<SocketAddr> = addresses.map(NodeAddress::client).collect();
    let foreign = found.replicas.iter();
    let foreign = foreign.filter(|one| !addresses.contains(&one.address()));
    // Where addresses are translated on the way, a replica is attached from another one than it announces.
    let mut translated = foreign.filter(|one| confirmed(one)).count();
    let heard = view.others().filter(|node| !node.is_failing());
    let late = heard.filter_map(|node| {
        let replica = node.address.as_ref().map(NodeAddress::client)?;
        let lines = found.replicas.iter();
        let lines: Vec<&AttachedReplica> = lines.filter(|one| one.address() == replica).collect();
        if lines.iter().any(|one| confirmed(one)) {
            return None;
        }
        if lines.is_empty() {
            if node.primary != Some(view.myself().id) {
                return None;
            }
            if translated > 0 {
                translated -= 1;
                return None;
            }
        }
        let attached = lines.iter().any(|one| one.online);
        Some(LateReplica { replica, attached })
    });
    late.collect()
}

/// The node's table, read again if that was longer ago.
async fn table<'a>(
    node: &NodeLink,
    known: &'a mut ReplicaTable,
    fresh: Duration,
) -> Result<&'a NodesView, ReshardError> {
    let read = known
        .table
        .take()
        .filter(|(read, _)| read.elapsed() < fresh);
    let read = if let Some(read) = read {
        read
    } else {
        let view = node.view().await.map_err(|error| node.lost(error))?;
        (Instant::now(), view)
    };
    Ok(&known.table.insert(read).1)
}

async fn replication(node: &NodeLink) -> Result<ReplicationInfo, ReshardError> {
    let text: String = node.ask("INFO", cmd("INFO").arg("replication")).await?;
    Ok(Info::parse(&text).replication())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(others: &[(&str, &str)]) -> NodesView {
        let own = "a".repeat(40);
        let mut text = format!("{own} 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-99\n");
        for (index, (ip, flags)) in others.iter().enumerate() {
            let primary = if flags.contains("slave") { &own } else { "-" };
            let line = format!("{index:040x} {ip}:6379@16379 {flags} {primary} 0 0 1 connected\n");
            text.push_str(&line);
        }
        NodesView::parse(&text).unwrap()
    }

    fn attached(lines: &[(&str, &str, u64)]) -> ReplicationInfo {
        let mut text = "role:master\r\nconnected_slaves:3\r\nmaster_repl_offset:100\r\n".to_owned();
        for (index, (ip, state, offset)) in lines.iter().enumerate() {
            let line = format!("slave{index}:ip={ip},port=6379,state={state},offset={offset}");
            text.extend([line.as_str(), ",lag=0\r\n"]);
        }
        Info::parse(&text).replication()
    }

    #[test]
    fn every_replica_that_is_heard_of_has_to_confirm() {
        let (one, two) = ("10.0.0.2", "10.0.0.3");
        let both = [(one, "slave"), (two, "slave")];
        let confirmed = (one, "online", 100);
        let (none, behind, absent) = (None, Some((two, true)), Some((two, false)));
        for (nodes, replicas, expected) in [
            (&both[..], &[confirmed, (two, "online", 100)][..], none),
            (&both, &[confirmed, (two, "online", 99)], behind),
            // Being copied to again, or dropped a moment ago.
            (&both, &[confirmed, (two, "wait_bgsave", 100)], absent),
            (&both, &[confirmed], absent),
            // It has connected again, and the primary has not noticed that the connection before is dead.
            (
                &both,
                &[confirmed, (two, "online", 9), (two, "online", 100)],
                none,
            ),
            (&[(one, "slave"), (two, "slave,fail?")], &[confirmed], none),
            (&[(one, "slave"), (two, "slave,fail")], &[confirmed], none),
            (
                &[(one, "slave"), (two, "slave,noaddr,fail")],
                &[confirmed],
                none,
            ),
            // The table does not have it as a replica yet.
            (
                &[(one, "slave"), (two, "master")],
                &[confirmed, (two, "online", 9)],
                behind,
            ),
            (&[(one, "slave"), (two, "master")], &[confirmed], none),
            // A reader that is no node.
            (&both[..1], &[confirmed, ("10.0.0.9", "online", 0)], none),
            (&both, &[confirmed, ("10.0.0.9", "online", 0)], absent),
            (&[], &[("10.0.0.9", "online", 0)], none),
            // A proxy on the way.
            (&both, &[confirmed, ("127.0.0.6", "online", 100)], none),
        ] {
            let expected = expected.map(|(ip, attached)| LateReplica {
                replica: format!("{ip}:6379").parse().unwrap(),
                attached,
            });
            let found = late(&table(nodes), &attached(replicas), 100);
            let expected: Vec<LateReplica> = expected.into_iter().collect();
            assert_eq!(found, expected, "{nodes:?} {replicas:?}");
        }
    }
}
