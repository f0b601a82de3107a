//! Why a node cannot be reached, or does not do what it was asked.

use super::{
    endpoint::ExpectedIdentity,
    resp::RespError,
    topology::{NodeId, TopologyError},
};
use redis::RedisError;
use std::{io, net::SocketAddr, time::Duration};

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection, or it broke before the first command.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where the connection was tried.
        address: SocketAddr,
        /// What the operating system reports.
        source: io::Error,
    },
    /// The TLS handshake failed: one side refused the other.
    #[error("{address}: the TLS handshake failed: {source}")]
    NotEncrypted {
        /// Where the node listens.
        address: SocketAddr,
        /// What one side refuses.
        source: io::Error,
    },
    /// The connection was not ready in time.
    #[error("cannot connect to {address}: it did not {step} within {} ms", after.as_millis())]
    ConnectTimeout {
        /// Where the connection was tried.
        address: SocketAddr,
        /// What it did not do.
        step: &'static str,
        /// The endpoint's timeout.
        after: Duration,
    },
    /// The server wants other credentials.
    #[error("{address} {}", unauthenticated(username.as_deref(), code))]
    Unauthenticated {
        /// Where the node listens.
        address: SocketAddr,
        /// The user whose credentials were given.
        username: Option<String>,
        /// The code of the server's answer, for example WRONGPASS.
        code: String,
    },
    /// Another node has the address now.
    #[error(
        "node {found} answers at {address} instead of {expected}: the address has changed hands, read the topology again"
    )]
    WrongNode {
        /// Where another node was expected.
        address: SocketAddr,
        /// Who was expected.
        expected: ExpectedIdentity,
        /// Node id of the one that answers.
        found: NodeId,
    },
    /// No Redis server listens there.
    #[error("{command} on {address}: {source}; is it a Redis server?")]
    NotRedis {
        /// Where the connection was made.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// What was wrong.
        source: RespError,
    },
    /// No answer in time, or the connection broke.
    #[error("{command} on {address} got no answer: {source}")]
    Lost {
        /// Where the node listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// A timeout, or how the connection broke.
        source: RedisError,
    },
    /// The node is still loading its data.
    #[error("{command} on {address}: the node is still loading its data")]
    Loading {
        /// Where the node listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
    },
    /// The node runs a script, a function or a module command, and answers nothing else until that ends.
    #[error("{command} on {address}: the node is busy running a script or function")]
    Busy {
        /// The node that was asked.
        address: SocketAddr,
        /// What it was asked.
        command: &'static str,
    },
    /// A coordinated failover has not taken place in time; the servers have given it up.
    #[error(
        "CLUSTER FAILOVER on {address}: it is no primary after {} ms; its primary keeps the slots",
        after.as_millis()
    )]
    NotHandedOver {
        /// The replica that was to take over.
        address: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// A replica that is to take over has begun no newer epoch in time.
    #[error(
        "CLUSTER FAILOVER on {address}: no epoch newer than its primary's, {epoch}, after {} ms; it does not take over yet",
        after.as_millis()
    )]
    EpochNotNewer {
        /// The replica that was to take over.
        address: SocketAddr,
        /// The epoch of its primary.
        epoch: u64,
        /// How long it was waited for.
        after: Duration,
    },
    /// The node refused.
    #[error("{command} on {address} was refused: {source}")]
    Refused {
        /// Where the node listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// What it said.
        source: RedisError,
    },
    /// The answer has an unexpected form.
    #[error("{command} on {address} got an answer of an unexpected form: {source}")]
    Malformed {
        /// Where the node listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// What was wrong.
        source: RedisError,
    },
    /// The answer about the topology could not be understood.
    #[error("{address}: {source}")]
    Topology {
        /// Where the node listens.
        address: SocketAddr,
        /// What was wrong.
        source: TopologyError,
    },
}

impl NodeError {
    pub(super) fn of(address: SocketAddr, command: &'static str, source: RedisError) -> Self {
        let code = code(&source);
        let code = code.as_deref();
        if code == Some("LOADING") {
            Self::Loading { address, command }
        } else if code == Some("BUSY") {
            Self::Busy { address, command }
        } else if let Some(code @ ("NOAUTH" | "WRONGPASS")) = code {
            Self::Unauthenticated {
                address,
                username: None,
                code: code.to_owned(),
            }
        } else if source.is_io_error() || source.is_timeout() || source.is_connection_dropped() {
            Self::Lost {
                address,
                command,
                source,
            }
        } else if code.is_some() {
            Self::Refused {
                address,
                command,
                source,
            }
        } else {
            Self::Malformed {
                address,
                command,
                source,
            }
        }
    }

    /// What the server said when it refused, without its code.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { source, .. } => source.detail(),
            Self::Connect { .. }
            | Self::NotEncrypted { .. }
            | Self::ConnectTimeout { .. }
            | Self::Unauthenticated { .. }
            | Self::WrongNode { .. }
            | Self::NotRedis { .. }
            | Self::Lost { .. }
            | Self::Loading { .. }
            | Self::Busy { .. }
            | Self::NotHandedOver { .. }
            | Self::EpochNotNewer { .. }
            | Self::Malformed { .. }
            | Self::Topology { .. } => None,
        }
    }

    /// Whether the server gave no answer at all: there was no connection, it broke, or the time was over.
    pub fn is_unanswered(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::ConnectTimeout { .. } | Self::Lost { .. }
        )
    }

    /// The class of the error in CamelCase, for events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => "NodeUnreachable",
            Self::NotEncrypted { .. } => "TlsHandshakeFailed",
            Self::Unauthenticated { .. } => "NodeRefusesCredentials",
            Self::WrongNode { .. } => "WrongNode",
            Self::Lost { .. } => "NodeLost",
            Self::Loading { .. } => "NodeLoading",
            Self::Busy { .. } => "NodeBusy",
            Self::NotHandedOver { .. } => "NotHandedOver",
            Self::EpochNotNewer { .. } => "EpochNotNewer",
            Self::Refused { .. } => "NodeRefused",
            Self::NotRedis { .. } | Self::Malformed { .. } | Self::Topology { .. } => {
                "NodeAnswerMalformed"
            }
        }
    }
}

/// The code of the server's error, be it that of the first command of a pipeline that failed: `RedisError::code` gives none of a pipeline.
fn code(error: &RedisError) -> Option<String> {
    if let Some(code) = error.code() {
        return Some(code.to_owned());
    }
    let errors = error.clone().into_server_errors()?;
    errors.first().map(|(_, error)| error.code().to_owned())
}

fn unauthenticated(username: Option<&str>, code: &str) -> String {
    match username {
        Some(user) => format!(
            "refuses user {user:?} ({code}): another cluster's server answers there, or the user was changed by hand; if all refuse it, delete the pods one at a time, replicas first"
        ),
        None => format!(
            "asks for a user and a password ({code}): the cluster has no users; give it some with spec.auth, or remove the password with CONFIG SET requirepass"
        ),
    }
}
