//! The dialer against real servers: with and without a password, with the right node and with another.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use common::cluster::{
    endpoint::{Endpoint, NodeCredentials},
    node::{NodeClient, NodeError},
    reader::read,
    replication::{Handshake, ReplicationOptions},
    topology::NodeId,
};
use redis::cmd;
use secrecy::SecretString;
use tests::redis::RedisServer;

const PASSWORD: &str = "correct-horse";
const WRONG: &str = "battery-staple";

fn endpoint(server: &RedisServer) -> Endpoint {
    Endpoint::new(server.address(), Duration::from_secs(5))
}

fn credentials(user: &str, password: &str) -> NodeCredentials {
    NodeCredentials::new(user, SecretString::from(password))
}

/// The refusal, which names the address and never a password.
async fn refusal(endpoint: &Endpoint) -> Result<NodeError> {
    let answer = match NodeClient::connect(endpoint).await {
        Ok(client) => client
            .ask::<String>("CLUSTER MYID", cmd("CLUSTER").arg("MYID"))
            .await
            .err(),
        Err(error) => Some(error),
    };
    let error = answer.context("the server admitted the client")?;
    let text = format!("{error} {error:?}");
    assert!(text.contains(&endpoint.address().to_string()), "{text}");
    assert!(!text.contains(PASSWORD) && !text.contains(WRONG), "{text}");
    Ok(error)
}

#[tokio::test]
async fn requirepass_admits_the_password_and_nothing_else() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    let id = read(&endpoint(&server)).await?.id();
    server
        .call::<()>(&format!("CONFIG SET requirepass {PASSWORD}"))
        .await?;
    let with = |password| {
        let credentials = credentials(NodeCredentials::DEFAULT_USER, password);
        endpoint(&server).with_credentials(credentials)
    };
    assert_eq!(read(&with(PASSWORD).expecting(id)).await?.id(), id);
    for endpoint in [
        with(WRONG),
        endpoint(&server),
        endpoint(&server).expecting(id),
    ] {
        let error = refusal(&endpoint).await?;
        assert!(
            matches!(error, NodeError::Unauthenticated { .. }),
            "{error}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn acl_users_log_in_and_missing_permissions_are_named() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    server
        .call::<()>(&format!("ACL SETUSER backup on >{PASSWORD} +info"))
        .await?;
    let with = |user, password| endpoint(&server).with_credentials(credentials(user, password));
    let client = NodeClient::connect(&with("backup", PASSWORD)).await?;
    let info: String = client.ask("INFO", &cmd("INFO")).await?;
    assert!(info.contains("redis_version"), "{info}");
    let error = refusal(&with("backup", PASSWORD)).await?;
    assert!(matches!(error, NodeError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("cluster|myid"), "{error}");
    for (user, password) in [("backup", WRONG), ("unknown", PASSWORD)] {
        let error = refusal(&with(user, password)).await?;
        assert!(
            matches!(error, NodeError::Unauthenticated { .. }),
            "{error}"
        );
        let words = format!("refuses user {user:?}");
        assert!(error.to_string().contains(&words), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_server_without_a_password_accepts_credentials_too() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    let credentials = credentials(NodeCredentials::DEFAULT_USER, PASSWORD);
    let endpoint = endpoint(&server).with_credentials(credentials);
    read(&endpoint).await?;
    Ok(())
}

#[tokio::test]
async fn another_node_gets_no_command() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    let id = read(&endpoint(&server)).await?.id();
    let other = NodeId::from_bytes([7; 20]);
    NodeClient::connect(&endpoint(&server).expecting(Arc::new([id, other].into()))).await?;
    let error = refusal(&endpoint(&server).expecting(other)).await?;
    assert!(
        matches!(&error, NodeError::WrongNode { found, .. } if *found == id),
        "{error}"
    );
    assert!(error.to_string().contains(&other.to_string()), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_replication_stream_logs_in_as_well() -> Result<()> {
    let server = RedisServer::cluster_node(&[]).await?;
    let id = read(&endpoint(&server)).await?.id();
    server
        .call::<()>(&format!("CONFIG SET requirepass {PASSWORD}"))
        .await?;
    let credentials = credentials(NodeCredentials::DEFAULT_USER, PASSWORD);
    let endpoint = endpoint(&server)
        .with_credentials(credentials)
        .expecting(id);
    let handshake = Handshake::start(&endpoint, ReplicationOptions::default()).await?;
    let stream = handshake.full_resync().await?;
    assert_eq!(stream.fork().replication_id.len(), 40);
    Ok(())
}
