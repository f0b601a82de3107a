//! One connection to one node: the commands the controllers need, each with a timeout.

pub use super::error::NodeError;

use super::{dial::dial, endpoint::Endpoint, slots::Slot, topology::NodeId};
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisConnectionInfo, RedisError,
    aio::MultiplexedConnection, cmd, pipe,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Slots whose keys are counted in one question: the server answers no client while it counts them, which takes it less than a millisecond.
const SLOTS_AT_ONCE: usize = 1024;

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
    given_up: Arc<AtomicBool>,
}

impl NodeClient {
    /// Connects; the endpoint's timeout bounds the connecting and, later, every answer.
    pub async fn connect(endpoint: &Endpoint) -> Result<Self, NodeError> {
        let address = endpoint.address();
        let stream = dial(endpoint).await?;
        let info = RedisConnectionInfo::default().set_skip_set_lib_name();
        let config =
            AsyncConnectionConfig::new().set_response_timeout(Some(endpoint.answer_timeout()));
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config)
            .await
            .map_err(|source| NodeError::of(address, "connecting", source))?;
        // Ends by itself with the last clone of the connection.
        tokio::spawn(driver);
        Ok(Self {
            address,
            connection,
            given_up: Arc::default(),
        })
    }

    /// The address connected to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Keeps the connection from being used again: an answer failed, or is waited for no more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether it is not to be used again.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The id that the server has now.
    pub async fn id(&self) -> Result<NodeId, NodeError> {
        let id: String = self.ask("CLUSTER MYID", &cluster("MYID")).await?;
        id.parse().map_err(|source| NodeError::Topology {
            address: self.address,
            source,
        })
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

    /// Keys of each slot, in the order asked for; one round trip for every part of them.
    pub async fn count_keys_in_slots(&self, slots: &[Slot]) -> Result<Vec<u64>, NodeError> {
        let mut counts = Vec::with_capacity(slots.len());
        for part in slots.chunks(SLOTS_AT_ONCE) {
            let mut pipeline = pipe();
            for slot in part {
                pipeline
                    .cmd("CLUSTER")
                    .arg("COUNTKEYSINSLOT")
                    .arg(slot.get());
            }
            let counted: Vec<u64> = self.ask_all("CLUSTER COUNTKEYSINSLOT", &pipeline).await?;
            counts.extend(counted);
        }
        Ok(counts)
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
            .map_err(|source| self.failed(name, source))
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
            .map_err(|source| self.failed(name, source))
    }

    fn failed(&self, name: &'static str, source: RedisError) -> NodeError {
        self.give_up();
        NodeError::of(self.address, name, source)
    }
}

fn cluster(subcommand: &str) -> Cmd {
    let mut command = cmd("CLUSTER");
    command.arg(subcommand);
    command
}
