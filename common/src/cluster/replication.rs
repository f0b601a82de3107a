//! The replication stream: a full synchronisation that ends with the snapshot.
//!
//! Asks a server for an RDB the way a replica does (`PSYNC ? -1`), with `rdb-only`, so that the server keeps no
//! write stream for us, and gives the bytes of the RDB, no more and no less.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;

/// How to ask for the stream.
#[derive(Debug, Clone)]
pub struct ReplicationOptions {
    /// Port shown in the server's INFO for this connection, to tell it from a real replica.
    pub listening_port: Option<u16>,
    /// Address shown in the server's INFO for this connection.
    pub ip_address: Option<IpAddr>,
    /// The server's own version, such as `7.0.15`: Valkey 9 picks the RDB version by it.
    pub server_version: Option<String>,
    /// Longest wait for the connection and for the answer to each command before PSYNC.
    pub command_timeout: Duration,
    /// Longest silence after PSYNC: the server sends a keep-alive a second before the snapshot and data after.
    pub idle_timeout: Duration,
}

impl Default for ReplicationOptions {
    fn default() -> Self {
        Self {
            listening_port: None,
            ip_address: None,
            server_version: None,
            command_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// What went wrong; `address` is the server's.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The server.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("connection to {address} broke while {doing}: {source}")]
    Io {
        /// The server.
        address: SocketAddr,
        /// What was going on.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Nothing came for too long.
    #[error("{address} sent nothing for {after:?} while {doing}")]
    Timeout {
        /// The server.
        address: SocketAddr,
        /// What was going on.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// The server closed the connection before the end of the stream: its child died, or it dropped us.
    #[error(
        "{address} closed the connection while {doing}, after {received} bytes of the snapshot"
    )]
    Closed {
        /// The server.
        address: SocketAddr,
        /// What was going on.
        doing: &'static str,
        /// Bytes of the snapshot that had come.
        received: u64,
    },
    /// A replica whose link to its primary is down cannot give a snapshot now.
    #[error("{address} has no link to its primary: {message}")]
    NoPrimaryLink {
        /// The server.
        address: SocketAddr,
        /// Its answer.
        message: String,
    },
    /// The server is still loading its data.
    #[error("{address} is loading its data: {message}")]
    Loading {
        /// The server.
        address: SocketAddr,
        /// Its answer.
        message: String,
    },
    /// The server refuses these credentials.
    #[error("{address} does not permit replication: {message}")]
    Forbidden {
        /// The server.
        address: SocketAddr,
        /// Its answer.
        message: String,
    },
    /// The server refused for another reason.
    #[error("{address} refused {command}: {message}")]
    Refused {
        /// The server.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// Its answer.
        message: String,
    },
    /// The server answered what the protocol does not allow.
    #[error("{address} answered {answer:?} to {command}, which is not the replication protocol")]
    Unexpected {
        /// The server.
        address: SocketAddr,
        /// The command.
        command: &'static str,
        /// Its answer, shortened.
        answer: String,
    },
}

/// The instant of the snapshot, as the server told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Replication id, 40 hex digits.
    pub replication_id: String,
    /// Replication offset of the snapshot.
    pub offset: i64,
}

/// How the end of the snapshot is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// 40 bytes that follow the snapshot (a server without disk).
    EndMark([u8; 40]),
    /// The number of bytes, announced (a server that wrote a file first).
    Length(u64),
}

/// PSYNC is sent; the server has not taken its snapshot yet.
pub struct Handshake {}

impl Handshake {
    /// Connects, introduces itself and asks for a full synchronisation.
    pub async fn start(
        _address: SocketAddr,
        _options: ReplicationOptions,
    ) -> Result<Self, ReplicationError> {
        todo!()
    }

    /// Waits until the server has taken its snapshot.
    pub async fn full_resync(self) -> Result<ReplicationStream, ReplicationError> {
        todo!()
    }
}

/// The snapshot on its way.
pub struct ReplicationStream {
    fork: Fork,
}

impl ReplicationStream {
    /// Smallest free capacity with which `read` does not grow the caller's buffer.
    pub const MIN_CAPACITY: usize = 64;

    /// Connects and waits for the snapshot: `Handshake::start`, then `full_resync`.
    pub async fn open(
        address: SocketAddr,
        options: ReplicationOptions,
    ) -> Result<Self, ReplicationError> {
        Handshake::start(address, options)
            .await?
            .full_resync()
            .await
    }

    /// The instant of the snapshot.
    pub fn fork(&self) -> &Fork {
        &self.fork
    }

    /// How the end is marked; known after the first `read`.
    pub fn framing(&self) -> Option<Framing> {
        todo!()
    }

    /// Bytes of the snapshot delivered so far.
    pub fn received(&self) -> u64 {
        todo!()
    }

    /// Appends the next bytes of the snapshot to the free capacity of `into`, straight from the socket.
    ///
    /// Returns their number; 0 only after the end mark or the announced length was seen. An early end is an error.
    /// Cancelling the returned future loses nothing.
    pub async fn read(&mut self, _into: &mut BytesMut) -> Result<usize, ReplicationError> {
        todo!()
    }
}
