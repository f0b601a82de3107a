//! One connection to one node: the commands the controllers need, each with a timeout.

use super::{
    info::Info,
    slots::{Slot, SlotRange},
    topology::{ClusterInfo, NodeAddress, NodeId, NodesView, TopologyError},
};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo,
    Pipeline, RedisConnectionInfo, RedisError, aio::MultiplexedConnection, cmd, pipe,
};
use std::{net::SocketAddr, time::Duration};

/// How a replica takes over from its primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverMode {
    /// Together with the primary: nothing is lost. Needs the primary alive and the majority of the primaries.
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
    /// Connects; `timeout` bounds the connecting and, later, every answer.
    pub async fn connect(address: SocketAddr, timeout: Duration) -> Result<Self, NodeError> {
        let failed = |source| NodeError::Connect { address, source };
        let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
        let info = ConnectionAddr::Tcp(address.ip().to_string(), address.port())
            .into_connection_info()
            .map_err(failed)?
            .set_redis_settings(settings);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout));
        let connection = Client::open(info)
            .map_err(failed)?
            .get_multiplexed_async_connection_with_config(&config)
            .await
            .map_err(failed)?;
        Ok(Self {
            address,
            connection,
        })
    }

    /// The address connected to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node's view of all nodes.
    pub async fn nodes(&self) -> Result<NodesView, NodeError> {
        let text: String = self.ask("CLUSTER NODES", &cluster("NODES")).await?;
        self.understood(NodesView::parse(&text))
    }

    /// The node's view of the cluster's state.
    pub async fn cluster_info(&self) -> Result<ClusterInfo, NodeError> {
        let text: String = self.ask("CLUSTER INFO", &cluster("INFO")).await?;
        Ok(ClusterInfo::parse(&text))
    }

    /// A section of `INFO`, or with `None` the default ones (server, replication, keyspace and more). Answered even
    /// while the node loads its data.
    pub async fn info(&self, section: Option<&str>) -> Result<Info, NodeError> {
        let mut command = cmd("INFO");
        if let Some(section) = section {
            command.arg(section);
        }
        let text: String = self.ask("INFO", &command).await?;
        Ok(Info::parse(&text))
    }

    /// The node's own id.
    pub async fn my_id(&self) -> Result<NodeId, NodeError> {
        let text: String = self.ask("CLUSTER MYID", &cluster("MYID")).await?;
        self.understood(text.parse())
    }

    /// Introduces a node by its address. The handshake goes on after the answer.
    pub async fn meet(&self, other: NodeAddress) -> Result<(), NodeError> {
        let mut command = cluster("MEET");
        command
            .arg(other.ip.to_string())
            .arg(other.port)
            .arg(other.bus_port);
        self.ask("CLUSTER MEET", &command).await
    }

    /// Gives the node slots that have no owner in its view. `by_range`: the server knows `ADDSLOTSRANGE` (7.0).
    pub async fn add_slots(&self, ranges: &[SlotRange], by_range: bool) -> Result<(), NodeError> {
        if by_range {
            let mut command = cluster("ADDSLOTSRANGE");
            for range in ranges {
                command.arg(range.start().get()).arg(range.end().get());
            }
            return self.ask("CLUSTER ADDSLOTSRANGE", &command).await;
        }
        let mut command = cluster("ADDSLOTS");
        for range in ranges {
            for slot in range.start().get()..=range.end().get() {
                command.arg(slot);
            }
        }
        self.ask("CLUSTER ADDSLOTS", &command).await
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

    /// Keys of the node.
    pub async fn dbsize(&self) -> Result<u64, NodeError> {
        self.ask("DBSIZE", &cmd("DBSIZE")).await
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

    fn understood<T>(&self, parsed: Result<T, TopologyError>) -> Result<T, NodeError> {
        parsed.map_err(|source| NodeError::Topology {
            address: self.address,
            source,
        })
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
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The node.
        address: SocketAddr,
        /// Why.
        source: RedisError,
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
    fn of(address: SocketAddr, command: &'static str, source: RedisError) -> Self {
        if source.code() == Some("LOADING") {
            Self::Loading { address, command }
        } else if source.is_io_error() || source.is_timeout() || source.is_connection_dropped() {
            Self::Lost {
                address,
                command,
                source,
            }
        } else if source.code().is_some() {
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

    /// Whether the connection is of no further use.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. })
    }

    /// What the server said when it refused, without its code.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Refused { source, .. } => source.detail(),
            Self::Connect { .. }
            | Self::Lost { .. }
            | Self::Loading { .. }
            | Self::Malformed { .. }
            | Self::Topology { .. } => None,
        }
    }

    /// The class of the error in CamelCase, for events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "NodeUnreachable",
            Self::Lost { .. } => "NodeLost",
            Self::Loading { .. } => "NodeLoading",
            Self::Refused { .. } => "NodeRefused",
            Self::Malformed { .. } | Self::Topology { .. } => "NodeAnswerMalformed",
        }
    }
}
