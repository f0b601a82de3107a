//! The replication stream: a full synchronisation that ends with the snapshot.
//!
//! Asks a server for an RDB the way a replica does (`PSYNC ? -1`), with `rdb-only`, so that the server keeps no
//! write stream for us, and gives the bytes of the RDB, no more and no less.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::BytesMut;

mod connection;
mod end_mark;

use super::{endpoint::Endpoint, node::NodeError};
use connection::{Connection, ReplicationStage};
use end_mark::{EndMark, ScanResult};

/// Capacity added to a caller's buffer that has none left.
const READ_SIZE: usize = 64 * 1024;

/// How to ask for the stream.
#[derive(Debug, Clone)]
pub struct ReplicationOptions {
    /// Port shown in the server's INFO for this connection, to distinguish it from a real replica.
    pub listening_port: Option<u16>,
    /// Address shown in the server's INFO for this connection.
    pub ip_address: Option<IpAddr>,
    /// The server's own version, such as `7.0.15`: Valkey 9 picks the RDB version by it.
    pub server_version: Option<String>,
    /// Longest time without a byte after PSYNC: the server sends a keep-alive a second before the snapshot and data after.
    pub idle_timeout: Duration,
}

impl Default for ReplicationOptions {
    fn default() -> Self {
        Self {
            listening_port: None,
            ip_address: None,
            server_version: None,
            idle_timeout: Duration::from_mins(1),
        }
    }
}

/// What went wrong; `address` is the server's.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// No connection, or to another node than expected.
    #[error(transparent)]
    Dial(#[from] NodeError),
    /// The connection broke.
    #[error("connection to {address} broke while {doing}: {source}")]
    Io {
        /// Where the server listens.
        address: SocketAddr,
        /// What was going on.
        doing: &'static str,
        /// What the operating system reports.
        source: std::io::Error,
    },
    /// Nothing came for too long.
    #[error("{address} sent nothing for {after:?} while {doing}")]
    Timeout {
        /// Where the server listens.
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
        /// Where the server listens.
        address: SocketAddr,
        /// What was going on.
        doing: &'static str,
        /// Bytes of the snapshot that had come.
        received: u64,
    },
    /// A replica whose link to its primary is down cannot give a snapshot now.
    #[error("{address} has no link to its primary: {message}")]
    NoPrimaryLink {
        /// Where the server listens.
        address: SocketAddr,
        /// What it answered, from the error code on.
        message: String,
    },
    /// The server is still loading its data.
    #[error("{address} is loading its data: {message}")]
    Loading {
        /// Where the server listens.
        address: SocketAddr,
        /// What it answered, from the error code on.
        message: String,
    },
    /// The server refuses these credentials.
    #[error("{address} does not permit replication: {message}")]
    Forbidden {
        /// Where the server listens.
        address: SocketAddr,
        /// What it answered, from the error code on.
        message: String,
    },
    /// The server refused for another reason.
    #[error("{address} refused {command}: {message}")]
    Refused {
        /// Where the server listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// What it answered, from the error code on.
        message: String,
    },
    /// The server answered what the protocol does not allow.
    #[error("{address} answered {answer:?} to {command}, which is not the replication protocol")]
    Unexpected {
        /// Where the server listens.
        address: SocketAddr,
        /// The command that was sent, without its arguments.
        command: &'static str,
        /// Its answer, shortened.
        answer: String,
    },
}

/// The instant of the snapshot, as the server reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Replication id, 40 hex digits.
    pub replication_id: String,
    /// Replication offset of the snapshot.
    pub offset: i64,
}

/// PSYNC is sent; the server has not taken its snapshot yet.
pub struct Handshake {
    connection: Connection,
}

impl Handshake {
    /// Connects, introduces itself and asks for a full synchronisation.
    ///
    /// A server that does not know an introduction refuses it and is served all the same.
    pub async fn start(
        endpoint: &Endpoint,
        options: ReplicationOptions,
    ) -> Result<Self, ReplicationError> {
        let mut connection = Connection::open(endpoint, options.idle_timeout).await?;
        let port = options.listening_port.map(|port| port.to_string());
        let ip = options.ip_address.map(|ip| ip.to_string());
        // The version goes last and alone: servers before Valkey 8 refuse the whole command that holds it.
        let introductions: [&[&str]; 5] = [
            &["listening-port", port.as_deref().unwrap_or_default()],
            &["ip-address", ip.as_deref().unwrap_or_default()],
            &["capa", "eof", "capa", "psync2"],
            &["rdb-only", "1"],
            &[
                "version",
                options.server_version.as_deref().unwrap_or_default(),
            ],
        ];
        for words in introductions
            .into_iter()
            .filter(|words| words.iter().all(|word| !word.is_empty()))
        {
            let parts: Vec<&[u8]> = ["REPLCONF"]
                .iter()
                .chain(words)
                .map(|word| word.as_bytes())
                .collect();
            connection.send(&parts).await?;
            connection.line(ReplicationStage::Introduction).await?;
        }
        connection.send(&[b"PSYNC", b"?", b"-1"]).await?;
        Ok(Self { connection })
    }

    /// Waits until the server has taken its snapshot.
    ///
    /// Nothing is sent meanwhile: a byte of ours would restart the server's `repl-diskless-sync-delay`. The wait
    /// lasts as long as the server shows life, for another child process may have to end first; bound it from outside.
    pub async fn full_resync(mut self) -> Result<ReplicationStream, ReplicationError> {
        let line = self.connection.line(ReplicationStage::Snapshot).await?;
        let fork = parse_full_resync(&line).ok_or_else(|| self.connection.refusal(&line))?;
        Ok(ReplicationStream {
            connection: self.connection,
            fork,
            end: None,
            received: 0,
            finished: false,
        })
    }
}

fn parse_full_resync(line: &str) -> Option<Fork> {
    let mut words = line.strip_prefix("+FULLRESYNC ")?.split_ascii_whitespace();
    let (id, offset) = (words.next()?, words.next()?);
    let valid = id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let offset = offset.parse().ok()?;
    valid.then(|| Fork {
        replication_id: id.to_owned(),
        offset,
    })
}

/// How much of the snapshot is still to come.
enum SnapshotEnd {
    Mark(Box<EndMark>),
    Length { announced: u64 },
}

impl SnapshotEnd {
    /// `$EOF:<40 bytes>` or `$<length>`.
    fn parse(line: &str) -> Option<Self> {
        let announced = line.strip_prefix('$')?;
        if let Some(mark) = announced.strip_prefix("EOF:") {
            return Some(Self::Mark(Box::new(EndMark::new(
                mark.as_bytes().try_into().ok()?,
            ))));
        }
        announced
            .parse()
            .ok()
            .map(|announced| Self::Length { announced })
    }
}

/// The snapshot on its way.
pub struct ReplicationStream {
    connection: Connection,
    fork: Fork,
    end: Option<SnapshotEnd>,
    received: u64,
    finished: bool,
}

impl ReplicationStream {
    /// Smallest free capacity with which `read` does not grow the caller's buffer.
    pub const MIN_CAPACITY: usize = 64;

    /// The instant of the snapshot.
    pub fn fork(&self) -> &Fork {
        &self.fork
    }

    /// Bytes of the snapshot delivered so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Waits until the server announces how the snapshot ends. One without diskless replication first writes all of the
    /// snapshot to its disk; it shows life meanwhile: bound it from outside. Cancelling the future loses nothing.
    pub async fn announced(&mut self) -> Result<(), ReplicationError> {
        if self.end.is_none() {
            let line = self.connection.line(ReplicationStage::Framing).await?;
            self.end =
                Some(SnapshotEnd::parse(&line).ok_or_else(|| self.connection.refusal(&line))?);
        }
        Ok(())
    }

    /// Appends the next bytes of the snapshot to the free capacity of `into`, straight from the socket.
    ///
    /// Returns their number; 0 only after the end mark or the announced length was seen. An early end is an error.
    /// Cancelling the returned future loses nothing.
    pub async fn read(&mut self, into: &mut BytesMut) -> Result<usize, ReplicationError> {
        self.announced().await?;
        loop {
            let Some(limit) = self.limit() else {
                return Ok(0);
            };
            if into.capacity() - into.len() < Self::MIN_CAPACITY {
                into.reserve(READ_SIZE);
            }
            let start = into.len();
            let limit = limit.min(into.capacity() - start - self.held());
            self.connection
                .read(
                    into,
                    limit,
                    ReplicationStage::Payload {
                        received: self.received,
                    },
                )
                .await?;
            if let Some(SnapshotEnd::Mark(mark)) = &mut self.end {
                self.finished = mark.take(into, start) == ScanResult::End;
            }
            let delivered = into.len() - start;
            self.received += delivered as u64;
            if delivered > 0 {
                return Ok(delivered);
            }
        }
    }

    /// How many bytes may be read; nothing at the end.
    fn limit(&self) -> Option<usize> {
        match &self.end {
            _ if self.finished => None,
            Some(SnapshotEnd::Length { announced }) => {
                let left = announced.saturating_sub(self.received);
                (left > 0).then(|| usize::try_from(left).unwrap_or(usize::MAX))
            }
            Some(SnapshotEnd::Mark(_)) | None => Some(usize::MAX),
        }
    }

    /// Bytes that may come before the next ones without being read.
    fn held(&self) -> usize {
        match &self.end {
            Some(SnapshotEnd::Mark(mark)) => mark.held(),
            Some(SnapshotEnd::Length { .. }) | None => 0,
        }
    }
}
