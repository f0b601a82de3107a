//! Asks the pods that are to leave whether slots are on their way to them: on Valkey 9 a job of `CLUSTER MIGRATESLOTS` runs on without the
//! controller that started it, and until its end its target counts none of the keys that it has received.

use super::{
    member::{Answer, Member},
    observe::process,
    reshard::has_running_job,
};
use common::cluster::{
    endpoint::Endpoint,
    info::Family,
    kept_connections::{ClusterConnections, ServerProcess},
    node::NodeError,
};
use redis::{Value, cmd};
use std::time::Duration;

/// Lets each say so. One that could not be asked may import.
pub async fn find_imports(
    members: &mut [Member],
    connections: &ClusterConnections,
    timeout: Duration,
) {
    for member in members {
        let Some((process, endpoint)) = question(member, timeout) else {
            continue;
        };
        let imports = has_job(process.as_ref(), &endpoint, connections).await;
        if let Answer::Report(report) = &mut member.answer {
            report.imports = imports.unwrap_or(true);
        }
    }
}

fn question(member: &Member, timeout: Duration) -> Option<(Option<ServerProcess>, Endpoint)> {
    let report = member.report().filter(|_| !member.expected.wanted)?;
    let server = &report.server;
    let knows_jobs = server.family == Family::Valkey && server.at_least(9, 0);
    let is_asked = knows_jobs && report.own().is_primary();
    let address = member.expected.address.filter(|_| is_asked)?;
    let endpoint = Endpoint::new(address.client(), timeout).expecting(report.id());
    Some((process(&member.expected), endpoint))
}

async fn has_job(
    process: Option<&ServerProcess>,
    endpoint: &Endpoint,
    connections: &ClusterConnections,
) -> Result<bool, NodeError> {
    let node = connections.proven(process, endpoint).await?;
    let question = cmd("CLUSTER").arg("GETSLOTMIGRATIONS").clone();
    let jobs: Value = node.ask("CLUSTER GETSLOTMIGRATIONS", &question).await?;
    Ok(has_running_job(&jobs))
}
