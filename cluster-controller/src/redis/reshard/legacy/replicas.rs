//! Before slots are handed over: waits until the replicas of both nodes have what their primaries did with the keys.
//!
//! Until those of the target have the keys, its loss would cost them; and until those of the source have dropped them, one that took over
//! would have keys that clients may have deleted since. So each node that the primary's table has as its replica must be attached and confirm, also
//! one that the primary has just dropped; and each other node that is attached, which the table will have in a moment. One that hangs is waited for
//! until the primary does not hear of it any more. What copies the primary and is no node of the cluster (a reader, a backup) takes over from no one.

use crate::redis::reshard::{error::ReshardError, nodes::NodeLink};
use common::cluster::{
    info::{Info, ReplicationInfo},
    topology::{NodeAddress, NodesView},
};
use redis::cmd;
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// How long replicas that are alive may take. The slots stay open after that, and the next plan finishes them.
const CONFIRMATION: Duration = Duration::from_secs(10);
/// Those that have not confirmed after so long may hang: the primary is asked whether it hears of them. It is asked again as often.
const DOUBT: Duration = Duration::from_millis(20);
/// How long a question for what they have may block the connection over which everything else is asked.
const QUESTION: Duration = Duration::from_millis(2);

/// Waits for the replicas of a node to confirm all that it has written so far.
pub(super) async fn copied(node: &NodeLink) -> Result<(), ReshardError> {
    let _one_at_a_time = node.copying.lock().await;
    let begun = Instant::now();
    let mut view = table(node).await?;
    let mut found = replication(node).await?;
    let goal = found.offset;
    let mut asked = begun;
    while let Some(replica) = behind(&view, &found, goal) {
        if begun.elapsed() >= CONFIRMATION {
            return Err(ReshardError::ReplicasBehind {
                node: node.id,
                replica,
            });
        }
        if asked.elapsed() >= DOUBT {
            view = table(node).await?;
            asked = Instant::now();
        }
        // Makes them confirm at once. What it returns says nothing: from 7.2 on it counts only writes of this connection, which has none. So
        // that it does not return before they were asked, it waits for one more than there are.
        let mut wait = cmd("WAIT");
        wait.arg(found.replicas.len() + 1)
            .arg(QUESTION.as_millis().to_string());
        let _confirmed: i64 = node.ask("WAIT", &wait).await?;
        found = replication(node).await?;
    }
    Ok(())
}

/// The first replica that its primary hears of and that has not confirmed this much.
fn behind(view: &NodesView, found: &ReplicationInfo, goal: u64) -> Option<SocketAddr> {
    let own = view.myself().id;
    let mut heard = view.others().filter(|node| !node.is_failing());
    heard.find_map(|node| {
        let address = node.address.as_ref().map(NodeAddress::client)?;
        let mut attached = found.replicas.iter();
        let is_behind = match attached.find(|one| one.address() == address) {
            Some(replica) => !replica.online || replica.offset < goal,
            None => node.primary == Some(own),
        };
        is_behind.then_some(address)
    })
}

async fn table(node: &NodeLink) -> Result<NodesView, ReshardError> {
    node.view().await.map_err(|error| node.lost(error))
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
        for (nodes, replicas, late) in [
            (&both[..], &[confirmed, (two, "online", 100)][..], None),
            (&both, &[confirmed, (two, "online", 99)], Some(two)),
            // Being copied to again, or dropped a moment ago.
            (&both, &[confirmed, (two, "wait_bgsave", 100)], Some(two)),
            (&both, &[confirmed], Some(two)),
            (&[(one, "slave"), (two, "slave,fail?")], &[confirmed], None),
            (&[(one, "slave"), (two, "slave,fail")], &[confirmed], None),
            (
                &[(one, "slave"), (two, "slave,noaddr,fail")],
                &[confirmed],
                None,
            ),
            // The table does not have it as a replica yet.
            (
                &[(one, "slave"), (two, "master")],
                &[confirmed, (two, "online", 9)],
                Some(two),
            ),
            (&[(one, "slave"), (two, "master")], &[confirmed], None),
            // A reader that is no node.
            (&both[..1], &[confirmed, ("10.0.0.9", "online", 0)], None),
            (&[], &[("10.0.0.9", "online", 0)], None),
        ] {
            let late = late.map(|ip| format!("{ip}:6379").parse().unwrap());
            assert_eq!(
                behind(&table(nodes), &attached(replicas), 100),
                late,
                "{replicas:?}"
            );
        }
    }
}
