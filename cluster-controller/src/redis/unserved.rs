//! Asks who has keys of the slots that no node claims, or one that is gone: only where a cluster that may have data has such slots, which takes
//! a user's command (`CLUSTER DELSLOTS`) or a loss.

use super::{
    member::{Answer, Member, Wanted},
    observe::proven,
    survey::Survey,
};
use common::cluster::{
    endpoint::Endpoint,
    kept_connections::{ClusterConnections, ServerProcess},
    node::NodeError,
    slots::{Slot, SlotSet},
};
use futures::{StreamExt, stream};
use std::time::Duration;

/// Nodes asked at the same time.
const CONCURRENCY: usize = 16;

/// Lets every primary count its keys in these slots. One that could not be asked leaves its answer open.
pub async fn count_unserved(
    wanted: &Wanted,
    members: &mut [Member],
    connections: &ClusterConnections,
    timeout: Duration,
) {
    let survey = Survey::of(wanted, members);
    if !survey.may_have_data() {
        return;
    }
    let orphaned: Vec<Slot> = survey.free.union(&survey.lost()).iter().collect();
    if orphaned.is_empty() {
        return;
    }
    let questions: Vec<Option<Question>> = members
        .iter()
        .map(|member| question(member, connections, timeout))
        .collect();
    let counts: Vec<Option<SlotSet>> = stream::iter(questions)
        .map(|question| async {
            match question {
                Some(question) => count(&question, connections, &orphaned).await.ok(),
                None => Some(SlotSet::new()),
            }
        })
        .buffered(CONCURRENCY)
        .collect()
        .await;
    for (member, counted) in members.iter_mut().zip(counts) {
        if let Answer::Report(report) = &mut member.answer {
            report.unserved = counted;
        }
    }
}

/// The process that is asked, and where.
type Question = (Option<ServerProcess>, Endpoint);

/// Where a primary with keys is asked. Another node has nothing to count.
fn question(
    member: &Member,
    connections: &ClusterConnections,
    timeout: Duration,
) -> Option<Question> {
    let report = member.report()?;
    let has_keys = report.own().is_primary() && report.keys > 0;
    proven(member, connections, timeout).filter(|_| has_keys)
}

async fn count(
    (process, endpoint): &Question,
    connections: &ClusterConnections,
    slots: &[Slot],
) -> Result<SlotSet, NodeError> {
    let node = connections.proven(process.as_ref(), endpoint).await?;
    let keys = node.count_keys_in_slots(slots).await?;
    let counted = slots.iter().zip(keys);
    Ok(counted
        .filter(|(_, keys)| *keys > 0)
        .map(|(slot, _)| *slot)
        .collect())
}
