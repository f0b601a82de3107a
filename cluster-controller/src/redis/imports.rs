//! Asks the pods that are to leave whether slots are on their way to them: on Valkey 9 a job of `CLUSTER MIGRATESLOTS` runs on without the
//! controller that started it, and until its end its target counts none of the keys that it has received.

use super::{
    member::{Answer, Member},
    observe::proven,
    reshard::has_running_job,
};
use common::cluster::{
    endpoint::Endpoint,
    info::Family,
    kept_connections::{ClusterConnections, ServerProcess},
    node::NodeError,
};
use std::time::Duration;

/// Lets each say so. One that could not be asked may import.
pub async fn find_imports(
    members: &mut [Member],
    connections: &ClusterConnections,
    timeout: Duration,
) {
    for member in members {
        let asked = proven(member, connections, timeout).filter(|_| may_import(member));
        let Some((process, endpoint)) = asked else {
            continue;
        };
        let imports = has_job(process.as_ref(), &endpoint, connections).await;
        if let Answer::Report(report) = &mut member.answer {
            report.imports = imports.unwrap_or(true);
        }
    }
}

fn may_import(member: &Member) -> bool {
    let report = member.report().filter(|_| !member.expected.wanted);
    report.is_some_and(|report| {
        let server = &report.server;
        server.family == Family::Valkey && server.at_least(9, 0) && report.own().is_primary()
    })
}

async fn has_job(
    process: Option<&ServerProcess>,
    endpoint: &Endpoint,
    connections: &ClusterConnections,
) -> Result<bool, NodeError> {
    let node = connections.proven(process, endpoint).await?;
    has_running_job(&node).await
}
