//! Before slots are handed over: waits until the replicas of both nodes have what their primaries did with the keys.
//!
//! Until those of the target have the keys, its loss would cost them; and until those of the source have dropped them, one that took over
//! would have keys that clients may have deleted since. One that hangs is waited for until its primary does not hear of it any more.

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
    // One worker after the other: what the first one has waited for spares it the others.
    let mut hanging = node.hanging.lock().await;
    let begun = Instant::now();
    let mut found = replication(node).await?;
    let goal = found.offset;
    let mut asked = begun;
    loop {
        let behind: Vec<SocketAddr> = behind(&found, goal).collect();
        if behind.iter().all(|one| hanging.has(*one)) {
            return Ok(());
        }
        if asked.elapsed() >= DOUBT {
            let view = node.view().await.map_err(|error| node.lost(error))?;
            let failing = behind.into_iter().filter(|one| is_failing(&view, *one));
            hanging.note(failing);
            asked = Instant::now();
        }
        if begun.elapsed() >= CONFIRMATION {
            return Err(ReshardError::ReplicasBehind(node.id));
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

/// The replicas that have not confirmed this much.
fn behind(found: &ReplicationInfo, goal: u64) -> impl Iterator<Item = SocketAddr> {
    let replicas = found.replicas.iter();
    let behind = replicas.filter(move |one| one.online && one.offset < goal);
    behind.map(|one| SocketAddr::new(one.ip, one.port))
}

/// Whether a primary has not heard of its replica for a node timeout.
fn is_failing(view: &NodesView, replica: SocketAddr) -> bool {
    let mut others = view.others();
    others.any(|node| {
        let address = node.address.as_ref().map(NodeAddress::client);
        address == Some(replica) && node.is_failing()
    })
}

async fn replication(node: &NodeLink) -> Result<ReplicationInfo, ReshardError> {
    let text: String = node.ask("INFO", cmd("INFO").arg("replication")).await?;
    Ok(Info::parse(&text).replication())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(flags: &str) -> NodesView {
        let (own, replica) = ("a".repeat(40), "b".repeat(40));
        let text = format!(
            "{own} 10.0.0.1:6379@16379 myself,master - 0 0 1 connected 0-99\n\
             {replica} 10.0.0.2:6379@16379 {flags} {own} 0 0 1 connected\n"
        );
        NodesView::parse(&text).unwrap()
    }

    fn replicas(lines: &[(&str, &str, u64)]) -> ReplicationInfo {
        let mut text = "role:master\r\nconnected_slaves:3\r\nmaster_repl_offset:100\r\n".to_owned();
        for (index, (ip, state, offset)) in lines.iter().enumerate() {
            let line = format!("slave{index}:ip={ip},port=6379,state={state},offset={offset}");
            text.extend([line.as_str(), ",lag=0\r\n"]);
        }
        Info::parse(&text).replication()
    }

    #[test]
    fn only_replicas_that_hang_are_left_behind() {
        let found = replicas(&[
            ("10.0.0.2", "online", 99),
            ("10.0.0.3", "online", 100),
            ("10.0.0.4", "wait_bgsave", 0),
        ]);
        let behind: Vec<SocketAddr> = behind(&found, 100).collect();
        assert_eq!(behind.len(), 1);
        assert!(!is_failing(&view("slave"), behind[0]));
        assert!(is_failing(&view("slave,fail?"), behind[0]));
        assert!(is_failing(&view("slave,fail"), behind[0]));
        // Of one that the primary does not list nothing is known.
        let unknown = "10.0.0.9:6379".parse().unwrap();
        assert!(!is_failing(&view("slave,fail"), unknown));
    }
}
