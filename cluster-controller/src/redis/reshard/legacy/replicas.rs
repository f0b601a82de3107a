//! Before slots are handed over: waits, not for long, until the replicas of both nodes have what their primaries did with the keys.
//!
//! Until those of the target have the keys, its loss would cost them; and until those of the source have dropped them, one that took over
//! would have keys that clients may have deleted since.

use crate::redis::reshard::{context::Context, error::ReshardError, nodes::NodeLink};
use common::cluster::info::{Info, ReplicationInfo};
use redis::cmd;
use std::time::{Duration, Instant};

/// How long they may take.
const CONFIRMATION: Duration = Duration::from_millis(250);
/// How long a question for what they have may block the connection over which everything else is asked.
const QUESTION: Duration = Duration::from_millis(2);

/// Waits for the replicas of a node. Where they were behind a while ago, it does not.
pub(super) async fn copied(context: &Context<'_>, node: &NodeLink) -> Result<(), ReshardError> {
    // One worker after the other: the first one that waited without success spares it the others.
    let _turn = node.confirming.lock().await;
    if context.is_followed(node.id) && !have_all(node).await? {
        tracing::info!(node = %node.id, "its replicas are behind: slots move without waiting for them");
        context.leave_behind(node.id);
    }
    Ok(())
}

/// Whether its replicas have confirmed in time all that it has written so far.
async fn have_all(node: &NodeLink) -> Result<bool, ReshardError> {
    let begun = Instant::now();
    let mut found = replication(node).await?;
    let goal = found.offset;
    loop {
        let online = || found.replicas.iter().filter(|one| one.online);
        if online().all(|one| one.offset >= goal) {
            return Ok(true);
        }
        if begun.elapsed() >= CONFIRMATION {
            return Ok(false);
        }
        // Makes them confirm at once. What it returns says nothing: from 7.2 on it counts only writes of this connection, which has none. So
        // that it does not return before they were asked, it waits for one more than there are.
        let mut wait = cmd("WAIT");
        wait.arg(online().count() + 1)
            .arg(QUESTION.as_millis().to_string());
        let _confirmed: i64 = node.ask("WAIT", &wait).await?;
        found = replication(node).await?;
    }
}

async fn replication(node: &NodeLink) -> Result<ReplicationInfo, ReshardError> {
    let text: String = node.ask("INFO", cmd("INFO").arg("replication")).await?;
    Ok(Info::parse(&text).replication())
}
