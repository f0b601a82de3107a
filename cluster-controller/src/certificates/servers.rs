//! Gives servers their certificates, and asks them to show it. A server that is not the one which was observed gets no command.

use super::{state::ServerFiles, tracker::PodIdentity};
use crate::{
    observe::NODE_TIMEOUT,
    redis::{
        each_server::each,
        member::{Member, Report},
        observe::proven,
    },
};
use common::cluster::{
    kept_connections::ClusterConnections,
    node::{NodeClient, NodeError},
    transport::Transport,
};
use futures::{StreamExt, stream};
use redis::cmd;

/// Servers that are asked for a handshake at the same time.
const CONCURRENCY: usize = 32;

/// Lets every server use these files. One whose pod does not have them yet refuses, and is asked again later.
pub async fn give(members: &[Member], connections: &ClusterConnections, wanted: &ServerFiles) {
    each(members, connections, |client, server| async move {
        if reported(server).as_ref() == Some(wanted) {
            return Ok(());
        }
        set(&client, wanted).await?;
        tracing::info!(address = %client.address(), certificate = %wanted.certificate, "a server has its certificate");
        Ok(())
    })
    .await;
}

/// In one step: certificate and key fit each other at any time.
async fn set(client: &NodeClient, wanted: &ServerFiles) -> Result<(), NodeError> {
    let mut command = cmd("CONFIG");
    command.arg("SET");
    for (name, value) in wanted.settings() {
        command.arg(name).arg(value);
    }
    client.ask("CONFIG SET", &command).await
}

/// What a server uses.
pub fn reported(server: &Report) -> Option<ServerFiles> {
    ServerFiles::reported(&server.settings)
}

/// The pods whose servers show a certificate that `transport` accepts.
pub async fn handshake(
    members: &[Member],
    connections: &ClusterConnections,
    transport: &Transport,
) -> Vec<PodIdentity> {
    let mut asked = Vec::new();
    for member in members {
        if let Some((_, endpoint)) = proven(member, connections, NODE_TIMEOUT) {
            let endpoint = endpoint.with_transport(transport.clone());
            asked.push((PodIdentity::of(member), endpoint));
        }
    }
    let shown = stream::iter(asked).map(|(pod, endpoint)| async move {
        match NodeClient::connect(&endpoint).await {
            Ok(_) => Some(pod),
            Err(error) => {
                tracing::info!(%error, "certificate not confirmed: the handshake failed");
                None
            }
        }
    });
    let shown: Vec<Option<PodIdentity>> = shown.buffered(CONCURRENCY).collect().await;
    shown.into_iter().flatten().collect()
}
