//! The connection to a server that treats us as a replica: commands out, lines and bytes in, every wait bounded.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::ReplicationError;
use crate::cluster::{
    dial::{NodeStream, dial},
    endpoint::Endpoint,
    resp::CommandWriter,
};

/// A line of the handshake is never longer.
const MAX_LINE: usize = 4096;

/// What is being waited for.
#[derive(Debug, Clone, Copy)]
pub(super) enum ReplicationStage {
    Introduction,
    Snapshot,
    Framing,
    Payload { received: u64 },
}

impl ReplicationStage {
    fn doing(self) -> &'static str {
        match self {
            Self::Introduction => "answering REPLCONF",
            Self::Snapshot => "preparing the snapshot",
            Self::Framing => "announcing the snapshot",
            Self::Payload { .. } => "sending the snapshot",
        }
    }

    fn received(self) -> u64 {
        match self {
            Self::Payload { received } => received,
            Self::Introduction | Self::Snapshot | Self::Framing => 0,
        }
    }
}

pub(super) struct Connection {
    link: Link,
    /// Bytes that came after the last line.
    ahead: BytesMut,
}

/// The socket, and how long to wait for it.
struct Link {
    address: SocketAddr,
    socket: NodeStream,
    command_timeout: Duration,
    idle_timeout: Duration,
}

impl Connection {
    pub(super) async fn open(
        endpoint: &Endpoint,
        idle_timeout: Duration,
    ) -> Result<Self, ReplicationError> {
        let link = Link {
            address: endpoint.address(),
            socket: dial(endpoint).await?,
            command_timeout: endpoint.timeout(),
            idle_timeout,
        };
        Ok(Self {
            link,
            ahead: BytesMut::with_capacity(MAX_LINE),
        })
    }

    pub(super) async fn send(&mut self, parts: &[&[u8]]) -> Result<(), ReplicationError> {
        let (address, doing, after) = (
            self.link.address,
            "taking a command",
            self.link.command_timeout,
        );
        let mut command = BytesMut::new();
        CommandWriter::write(&mut command, parts);
        timeout(after, self.link.socket.write_all(&command))
            .await
            .map_err(|_| ReplicationError::Timeout {
                address,
                doing,
                after,
            })?
            .map_err(|source| ReplicationError::Io {
                address,
                doing,
                source,
            })
    }

    /// The next line that is no keep-alive, without its end.
    pub(super) async fn line(
        &mut self,
        stage: ReplicationStage,
    ) -> Result<String, ReplicationError> {
        loop {
            let blank = self.ahead.iter().take_while(|byte| **byte == b'\n').count();
            let _ = self.ahead.split_to(blank);
            if let Some(end) = self.ahead.iter().position(|byte| *byte == b'\n') {
                let line = self.ahead.split_to(end + 1);
                return Ok(String::from_utf8_lossy(line.trim_ascii_end()).into_owned());
            }
            if self.ahead.len() >= MAX_LINE {
                return Err(self.refusal(&String::from_utf8_lossy(&self.ahead)));
            }
            self.ahead.reserve(MAX_LINE);
            self.link.receive(&mut self.ahead, MAX_LINE, stage).await?;
        }
    }

    /// Appends at least one and at most `limit` bytes to the free capacity of `into`.
    pub(super) async fn read(
        &mut self,
        into: &mut BytesMut,
        limit: usize,
        stage: ReplicationStage,
    ) -> Result<(), ReplicationError> {
        if self.ahead.is_empty() {
            return self.link.receive(into, limit, stage).await;
        }
        let ahead = self.ahead.split_to(limit.min(self.ahead.len()));
        into.extend_from_slice(&ahead);
        Ok(())
    }

    /// What an answer to PSYNC means that is not what was asked for.
    pub(super) fn refusal(&self, line: &str) -> ReplicationError {
        let address = self.link.address;
        let Some(error) = line.strip_prefix('-') else {
            return ReplicationError::Unexpected {
                address,
                command: "PSYNC",
                answer: line.chars().take(80).collect(),
            };
        };
        let message = error.to_owned();
        match error.split(' ').next().unwrap_or_default() {
            "NOMASTERLINK" | "MASTERDOWN" => ReplicationError::NoPrimaryLink { address, message },
            "LOADING" => ReplicationError::Loading { address, message },
            "NOAUTH" | "NOPERM" | "WRONGPASS" => ReplicationError::Forbidden { address, message },
            _ => ReplicationError::Refused {
                address,
                command: "PSYNC",
                message,
            },
        }
    }
}

impl Link {
    async fn receive(
        &mut self,
        into: &mut BytesMut,
        limit: usize,
        stage: ReplicationStage,
    ) -> Result<(), ReplicationError> {
        let (address, doing) = (self.address, stage.doing());
        let after = match stage {
            ReplicationStage::Introduction => self.command_timeout,
            ReplicationStage::Snapshot
            | ReplicationStage::Framing
            | ReplicationStage::Payload { .. } => self.idle_timeout,
        };
        let read = timeout(after, self.socket.read_buf(&mut into.limit(limit)))
            .await
            .map_err(|_| ReplicationError::Timeout {
                address,
                doing,
                after,
            })?
            .map_err(|source| ReplicationError::Io {
                address,
                doing,
                source,
            })?;
        if read == 0 {
            return Err(ReplicationError::Closed {
                address,
                doing,
                received: stage.received(),
            });
        }
        Ok(())
    }
}
