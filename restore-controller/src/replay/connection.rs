//! The connection to one node: writes batches and reads replies at the same time, and waits for neither before the other.

use super::{
    batch::CommandBatch,
    replies::{ReplyError, RestoreReply, next_reply},
    reply_action::{ReplyAction, RetryReason, read_error},
};
use bytes::{Buf, BytesMut};
use common::cluster::{
    dial::{NodeStream, dial},
    endpoint::NodeAccess,
    node::NodeError,
};
use std::{collections::VecDeque, io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

/// How long a connection may take to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may leave commands unanswered. A value of 512 MB takes seconds.
const REPLY_TIMEOUT: Duration = Duration::from_mins(1);
/// How often the age of the last reply is checked.
const TICK: Duration = Duration::from_secs(1);
/// Room for replies: five bytes each as long as all goes well.
const REPLY_BUFFER: usize = 64 * 1024;

/// What a connection reports to the replay loop.
#[derive(Debug)]
pub enum ConnectionEvent {
    /// Every command of the batch has been executed or requeued. The batch comes back for another use.
    Answered {
        connection: usize,
        batch: CommandBatch,
    },
    /// The connection has ended. Every batch has been reported before.
    Closed {
        connection: usize,
        error: NodeConnectionError,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeConnectionError {
    /// No connection, or to a node that is none of the target's.
    #[error(transparent)]
    Connect(NodeError),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The node closed it.
    #[error("the node closed the connection")]
    ClosedByNode,
    /// No replies.
    #[error("no reply within {} s", REPLY_TIMEOUT.as_secs())]
    Silent,
    /// Not the protocol.
    #[error("the node does not speak Redis' protocol")]
    Protocol(#[from] ReplyError),
    /// More replies than commands.
    #[error("the node sent a reply to no command")]
    Unasked,
    /// The replay loop is gone.
    #[error("the replay has ended")]
    Abandoned,
}

/// Serves the queue until it is closed and everything is answered, or until the connection fails.
///
/// Nothing is sent before the node has said that it is one of `members`: a pod's address may be another pod's by now.
pub async fn run(
    connection: usize,
    address: SocketAddr,
    members: NodeAccess,
    mut queue: mpsc::Receiver<CommandBatch>,
    reports: mpsc::Sender<ConnectionEvent>,
) {
    let mut inflight = VecDeque::new();
    let result = match connect(address, members).await {
        Ok(stream) => {
            Exchange::new(connection, stream, &mut inflight)
                .serve(&mut queue, &reports)
                .await
        }
        Err(error) => Err(error),
    };
    let Err(error) = result else { return };
    queue.close();
    while let Some(batch) = queue.recv().await {
        inflight.push_back(batch);
    }
    for mut batch in inflight {
        batch.requeue_rest(&ReplyAction::Wait(RetryReason::Disconnected));
        if reports
            .send(ConnectionEvent::Answered { connection, batch })
            .await
            .is_err()
        {
            return;
        }
    }
    // Fails when the replay itself has ended, which then needs no event.
    let _ = reports
        .send(ConnectionEvent::Closed { connection, error })
        .await;
}

async fn connect(
    address: SocketAddr,
    members: NodeAccess,
) -> Result<NodeStream, NodeConnectionError> {
    let endpoint = members.endpoint(address, CONNECT_TIMEOUT);
    dial(&endpoint).await.map_err(NodeConnectionError::Connect)
}

struct Exchange<'a> {
    connection: usize,
    reader: ReadHalf<NodeStream>,
    writer: WriteHalf<NodeStream>,
    /// Batches written or being written, oldest first.
    inflight: &'a mut VecDeque<CommandBatch>,
    /// Index in `inflight` of the batch being written, and how much of it has been.
    writing: usize,
    written: usize,
    replies: BytesMut,
    heard: Instant,
}

impl<'a> Exchange<'a> {
    fn new(
        connection: usize,
        stream: NodeStream,
        inflight: &'a mut VecDeque<CommandBatch>,
    ) -> Self {
        let (reader, writer) = split(stream);
        Self {
            connection,
            reader,
            writer,
            inflight,
            writing: 0,
            written: 0,
            replies: BytesMut::with_capacity(REPLY_BUFFER),
            heard: Instant::now(),
        }
    }

    async fn serve(
        &mut self,
        queue: &mut mpsc::Receiver<CommandBatch>,
        reports: &mpsc::Sender<ConnectionEvent>,
    ) -> Result<(), NodeConnectionError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || !self.inflight.is_empty() {
            let batch = self.inflight.get(self.writing);
            let pending = batch.and_then(|batch| batch.bytes.get(self.written..));
            let pending = pending.unwrap_or_default();
            tokio::select! {
                read = self.reader.read_buf(&mut self.replies) => {
                    if read.map_err(NodeConnectionError::Broken)? == 0 {
                        return Err(NodeConnectionError::ClosedByNode);
                    }
                    self.take_replies(reports).await?;
                }
                wrote = self.writer.write(pending), if !pending.is_empty() => {
                    self.wrote(wrote.map_err(NodeConnectionError::Broken)?);
                }
                batch = queue.recv(), if open => match batch {
                    Some(batch) => self.push(batch),
                    None => open = false,
                },
                _ = tick.tick() => {
                    if !self.inflight.is_empty() && self.heard.elapsed() > REPLY_TIMEOUT {
                        return Err(NodeConnectionError::Silent);
                    }
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, batch: CommandBatch) {
        if self.inflight.is_empty() {
            self.heard = Instant::now();
        }
        self.inflight.push_back(batch);
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        let length = self.inflight.get(self.writing).map(|c| c.bytes.len());
        if length.is_some_and(|length| self.written >= length) {
            self.writing += 1;
            self.written = 0;
        }
    }

    async fn take_replies(
        &mut self,
        reports: &mpsc::Sender<ConnectionEvent>,
    ) -> Result<(), NodeConnectionError> {
        self.heard = Instant::now();
        while let Some((reply, length)) = next_reply(&self.replies)? {
            match reply {
                RestoreReply::Ok(mut count) => {
                    while count > 0 {
                        let front = self
                            .inflight
                            .front_mut()
                            .ok_or(NodeConnectionError::Unasked)?;
                        count -= front.take_ok(count);
                        self.report_answered(reports).await?;
                    }
                }
                RestoreReply::Error(text) => {
                    let action = read_error(text);
                    let front = self
                        .inflight
                        .front_mut()
                        .ok_or(NodeConnectionError::Unasked)?;
                    front.take_error(action);
                    self.report_answered(reports).await?;
                }
            }
            self.replies.advance(length);
        }
        Ok(())
    }

    async fn report_answered(
        &mut self,
        reports: &mpsc::Sender<ConnectionEvent>,
    ) -> Result<(), NodeConnectionError> {
        if !self.inflight.front().is_some_and(CommandBatch::is_answered) {
            return Ok(());
        }
        // Replies to what has not been sent: the counts would no longer show which key was executed. The batch stays in the
        // queue, from which it is reported.
        self.writing = self
            .writing
            .checked_sub(1)
            .ok_or(NodeConnectionError::Unasked)?;
        let Some(batch) = self.inflight.pop_front() else {
            return Ok(());
        };
        let connection = self.connection;
        reports
            .send(ConnectionEvent::Answered { connection, batch })
            .await
            .map_err(|_| NodeConnectionError::Abandoned)
    }
}
