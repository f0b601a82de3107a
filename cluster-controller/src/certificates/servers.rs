//! Gives servers their certificates, and asks them to show it. A server that is not the one which was observed gets no command.

use super::{
    encryption::{self, has_certificates},
    state::ServerTls,
    tracker::PodIdentity,
};
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
    topology::{NodeAddress, NodeId},
    transport::Transport,
};
use crds::{CLIENT_PORT, Encryption};
use futures::{StreamExt, stream};
use redis::cmd;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Servers that are asked for a handshake at the same time.
const CONCURRENCY: usize = 32;

/// Lets every server use these files. One whose pod does not have them yet refuses, and is asked again later.
pub async fn give(members: &[Member], connections: &ClusterConnections, wanted: &ServerTls) {
    each(members, connections, |client, server| async move {
        // One without certificates gets them in another pod.
        if reported(server).as_ref() == Some(wanted) || !has_certificates(&server.settings) {
            return Ok(());
        }
        let now = encryption::reported(&server.settings);
        if let Some(encryption) = encryption::between(now, wanted.encryption) {
            let between = ServerTls {
                encryption,
                ..wanted.clone()
            };
            set(&client, &between).await?;
        }
        set(&client, wanted).await?;
        tracing::info!(address = %client.address(), certificate = %wanted.certificate, encryption = ?wanted.encryption, "a server has its certificate");
        Ok(())
    })
    .await;
}

/// In one step: certificate and key fit each other at any time.
async fn set(client: &NodeClient, wanted: &ServerTls) -> Result<(), NodeError> {
    let mut command = cmd("CONFIG");
    command.arg("SET");
    for (name, value) in wanted.settings() {
        command.arg(name).arg(value);
    }
    client.ask("CONFIG SET", &command).await
}

/// Ends the connections at the port in the clear, which outlive it. The pods whose servers have ended them.
pub async fn end_plaintext(
    members: &[Member],
    connections: &ClusterConnections,
) -> Vec<PodIdentity> {
    let ended = each(members, connections, |client, _| async move {
        let own = client.address().ip();
        let loopback: IpAddr = match own {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        for ip in [own, loopback] {
            let at = SocketAddr::new(ip, CLIENT_PORT).to_string();
            let mut command = cmd("CLIENT");
            command.arg("KILL").arg("LADDR").arg(at);
            client.ask::<u64>("CLIENT KILL", &command).await?;
        }
        Ok(own)
    })
    .await;
    let at = |member: &&Member| {
        let address = member.expected.address;
        address.is_some_and(|address| ended.contains(&address.ip))
    };
    members.iter().filter(at).map(PodIdentity::of).collect()
}

/// Whether every server that answers sends others everything in the clear. One that does not answer keeps none from going back: it may be one
/// that cannot start with certificates, and it listens in the clear too once it runs.
pub fn all_plain(members: &[Member]) -> bool {
    let mut reports = members.iter().filter_map(Member::report);
    reports.all(|report| {
        !has_certificates(&report.settings)
            || encryption::reported(&report.settings) == Some(Encryption::Prepared)
    })
}

/// Where servers that answer listen for the controllers.
pub fn addresses(members: &[Member]) -> BTreeMap<NodeId, NodeAddress> {
    let address = |member: &Member| Some((member.report()?.id(), member.expected.address?));
    members.iter().filter_map(address).collect()
}

/// Whether a server sends clients of the present kind to ports of the other kind: it has not heard yet of what others listen on.
pub fn redirects_to_other_ports(
    member: &Member,
    addresses: &BTreeMap<NodeId, NodeAddress>,
) -> bool {
    let Some(report) = member.report() else {
        return false;
    };
    report.view.nodes().iter().any(|node| {
        let ports = addresses.get(&node.id).zip(node.address);
        ports.is_some_and(|(expected, known)| known == *expected && known.port != expected.port)
    })
}

/// What a server uses.
pub fn reported(server: &Report) -> Option<ServerTls> {
    ServerTls::reported(&server.settings)
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
