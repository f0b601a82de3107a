//! Gives servers their certificates, and asks them to show it. A server that is not the one which was observed gets no command.

use super::{
    encryption::{self, has_certificates},
    state::ServerFiles,
    tracker::PodIdentity,
};
use crate::{
    observe::NODE_TIMEOUT,
    redis::{
        each_server::each,
        member::{Answer, Member, Report},
        observe::proven,
    },
};
use common::cluster::{
    kept_connections::ClusterConnections,
    node::{NodeClient, NodeError},
    transport::Transport,
};
use crds::{CLIENT_PORT, Encryption};
use futures::{StreamExt, stream};
use redis::cmd;
use std::net::SocketAddr;

/// Servers that are asked for a handshake at the same time.
const CONCURRENCY: usize = 32;

/// Lets every server use these files. One whose pod does not have them yet refuses, and is asked again later.
pub async fn give(members: &[Member], connections: &ClusterConnections, wanted: &ServerFiles) {
    each(members, connections, |client, server| async move {
        // One without certificates gets them in another pod.
        if reported(server).as_ref() == Some(wanted) || !has_certificates(&server.settings) {
            return Ok(());
        }
        set(&client, wanted).await?;
        tracing::info!(address = %client.address(), certificate = %wanted.certificate, encryption = ?wanted.encryption, "a server has its certificate");
        if wanted.encryption.lets_plaintext_in() {
            return Ok(());
        }
        end_plaintext(&client).await
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

/// Ends the connections at the port that has been closed: they outlive it.
async fn end_plaintext(client: &NodeClient) -> Result<(), NodeError> {
    let at = SocketAddr::new(client.address().ip(), CLIENT_PORT);
    let mut command = cmd("CLIENT");
    command.arg("KILL").arg("LADDR").arg(at.to_string());
    client.ask("CLIENT KILL", &command).await
}

/// Whether no server encrypts what it sends others, as far as any may run.
pub fn all_plain(members: &[Member]) -> bool {
    members.iter().all(|member| match &member.answer {
        Answer::Report(report) => {
            let encryption = encryption::reported(&report.settings);
            !has_certificates(&report.settings) || encryption == Some(Encryption::Prepared)
        }
        Answer::Loading | Answer::Busy | Answer::Unresponsive(_) => false,
        Answer::Absent(_) => member.expected.kubernetes_node.is_none(),
        Answer::Foreign(_) => true,
    })
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
            let endpoint = endpoint.at_port(transport.port());
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
