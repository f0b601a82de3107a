//! One connection to one node: the commands the controllers need, each with a timeout.

use super::{
    dial::dial,
    endpoint::{Endpoint, ExpectedIdentity},
    resp::RespError,
    slots::Slot,
    topology::{NodeId, TopologyError},
};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection, cmd, pipe,
};
use std::{io, net::SocketAddr, time::Duration};

/// How long a coordinated failover may take before the servers give it up (`CLUSTER_MF_TIMEOUT` in the engine's `cluster.c`).
pub const COORDINATED_LIMIT: Duration = Duration::from_secs(5);

/// How a replica takes over from its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    /// Together with the living primary, which pauses its clients until the replica has everything: loses no write. The server gives
    /// up after [`COORDINATED_LIMIT`].
    Coordinated,
    /// By election, without the primary. Needs the majority of the primaries.
    Force,
    /// Alone, without an election: only where the majority is lost.
    Takeover,
}

/// One connection to one node. Clones share it.
#[derive(Clone)]
pub struct NodeClient {
    address: SocketAddr,
    connection: MultiplexedConnection,
}

impl NodeClient {
    /// Connects; the endpoint's timeout bounds the connecting and, later, every answer.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, NodeError> {
        let address = endpoint.address();
        let stream = dial(endpoint).await?;
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(endpoint.timeout()));
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|source| NodeError::of(address, "connecting", source))?;
        // Ends by itself with the last clone of the connection.
        tokio::spawn(driver);
        Ok(Self {
            address,
            connection,
        })
    }

    /// The address connected to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the node a replica. It refuses while it has keys or slots of its own as a primary.
    pub async fn replicate(&self, primary: NodeId) -> Result<(), NodeError> {
        let mut command = cluster("REPLICATE");
        command.arg(primary.to_string());
        self.ask("CLUSTER REPLICATE", &command).await
    }

    /// Removes a node from this node's table and keeps it out for a minute.
    pub async fn forget(&self, other: NodeId) -> Result<(), NodeError> {
        let mut command = cluster("FORGET");
        command.arg(other.to_string());
        self.ask("CLUSTER FORGET", &command).await
    }

    /// Starts a failover on a replica; it is done when the topology says so.
    pub async fn failover(&self, mode: FailoverMode) -> Result<(), NodeError> {
        let mut command = cluster("FAILOVER");
        match mode {
            FailoverMode::Coordinated => {}
            FailoverMode::Force => {
                command.arg("FORCE");
            }
            FailoverMode::Takeover => {
                command.arg("TAKEOVER");
            }
        }
        self.ask("CLUSTER FAILOVER", &command).await
    }

    /// Changes a setting at run time.
    pub async fn config_set(&self, name: &str, value: &str) -> Result<(), NodeError> {
        let mut command = cmd("CONFIG");
        command.arg("SET").arg(name).arg(value);
        self.ask("CONFIG SET", &command).await
    }

    /// Keys of each slot, in the order asked for, in one round trip.
    pub async fn count_keys_in_slots(&self, slots: &[Slot]) -> Result<Vec<u64>, NodeError> {
        let mut pipeline = pipe();
        for slot in slots {
            pipeline
                .cmd("CLUSTER")
                .arg("COUNTKEYSINSLOT")
                .arg(slot.get());
        }
        self.ask_all("CLUSTER COUNTKEYSINSLOT", &pipeline).await
    }

    /// Loads a library of functions. `replace`: over an older one of the same name.
    pub async fn function_load(&self, code: &[u8], replace: bool) -> Result<(), NodeError> {
        let mut command = cmd("FUNCTION");
        command.arg("LOAD");
        if replace {
            command.arg("REPLACE");
        }
        command.arg(code);
        let _library: String = self.ask("FUNCTION LOAD", &command).await?;
        Ok(())
    }

    /// Any other command. `name` is what an error calls it.
    pub async fn ask<T: FromRedisValue>(
        &self,
        name: &'static str,
        command: &Cmd,
    ) -> Result<T, NodeError> {
        command
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| NodeError::of(self.address, name, source))
    }

    /// Several commands in one round trip.
    pub async fn ask_all<T: FromRedisValue>(
        &self,
        name: &'static str,
        pipeline: &Pipeline,
    ) -> Result<T, NodeError> {
        pipeline
            .query_async(&mut self.connection.clone())
            .await
            .map_err(|source| NodeError::of(self.address, name, source))
    }
}

fn cluster(subcommand: &str) -> Cmd {
    let mut command = cmd("CLUSTER");
    command.arg(subcommand);
    command
}

/// Why a node did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// No connection, or it broke before the first command.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The node.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The connection was not ready in time.
    #[error("cannot connect to {address}: it did not {step} within {} ms", after.as_millis())]
    ConnectTimeout {
        /// The node.
        address: SocketAddr,
        /// What it did not do.
        step: &'static str,
        /// The endpoint's timeout.
        after: Duration,
    },
    /// The server wants other credentials.
    #[error("{address} {}", unauthenticated(username.as_deref(), code))]
    Unauthenticated {
        /// The node.
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
        /// The address.
        address: SocketAddr,
        /// Who was expected.
        expected: ExpectedIdentity,
        /// Who answers.
        found: NodeId,
    },
    /// No Redis server listens there.
    #[error("{command} on {address}: {source}; is it a Redis server?")]
    NotRedis {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// What was wrong.
        source: RespError,
    },
    /// No answer in time, or the connection broke.
    #[error("{command} on {address} got no answer: {source}")]
    Lost {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// Why.
        source: RedisError,
    },
    /// The node is still loading its data.
    #[error("{command} on {address}: the node is still loading its data")]
    Loading {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
    },
    /// The node runs a script, a function or a module command, and answers nothing else until that ends.
    #[error("{command} on {address}: the node is busy running a script or function")]
    Busy {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
    },
    /// A coordinated failover has not taken place in time; the servers have given it up.
    #[error(
        "CLUSTER FAILOVER on {address}: it is no primary after {} ms; its primary keeps the slots",
        after.as_millis()
    )]
    NotHandedOver {
        /// The replica.
        address: SocketAddr,
        /// How long it was waited for.
        after: Duration,
    },
    /// The node refused.
    #[error("{command} on {address} was refused: {source}")]
    Refused {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// What it said.
        source: RedisError,
    },
    /// The answer has an unexpected form.
    #[error("{command} on {address} got an answer of an unexpected form: {source}")]
    Malformed {
        /// The node.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// What was wrong.
        source: RedisError,
    },
    /// The answer about the topology could not be understood.
    #[error("{address}: {source}")]
    Topology {
        /// The node.
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
            | Self::ConnectTimeout { .. }
            | Self::Unauthenticated { .. }
            | Self::WrongNode { .. }
            | Self::NotRedis { .. }
            | Self::Lost { .. }
            | Self::Loading { .. }
            | Self::Busy { .. }
            | Self::NotHandedOver { .. }
            | Self::Malformed { .. }
            | Self::Topology { .. } => None,
        }
    }

    /// The class of the error in CamelCase, for events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::ConnectTimeout { .. } => "NodeUnreachable",
            Self::Unauthenticated { .. } => "NodeRefusesCredentials",
            Self::WrongNode { .. } => "WrongNode",
            Self::Lost { .. } => "NodeLost",
            Self::Loading { .. } => "NodeLoading",
            Self::Busy { .. } => "NodeBusy",
            Self::NotHandedOver { .. } => "NotHandedOver",
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
            "refuses the credentials of user {user:?} ({code}): compare user and password with ACL LIST on the server"
        ),
        None => format!("asks for a password ({code}): give the controller credentials for it"),
    }
}
