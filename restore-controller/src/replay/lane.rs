//! The one connection to one node: writes chunks as they come, reads replies as they come, and never waits for the one
//! before it does the other.

use super::{
    chunk::Chunk,
    replies::{Reply, ReplyError, next_reply},
    verdict::{Pause, Verdict, read_error},
};
use bytes::{Buf, BytesMut};
use common::cluster::{
    dial::{NodeStream, dial},
    endpoint::Endpoint,
    node::NodeError,
    topology::NodeId,
};
use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval},
};

/// How long a connection may take to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a node may leave commands unanswered. A value of 512 MB takes seconds.
const REPLY_TIMEOUT: Duration = Duration::from_mins(1);
/// How often the silence is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Room for replies: five bytes each as long as all goes well.
const REPLY_BUFFER: usize = 64 * 1024;

/// What a connection tells the replay loop.
#[derive(Debug)]
pub enum Report {
    /// Every command of the chunk has been executed or bounced. The chunk comes back for another use.
    Answered {
        /// Which connection.
        lane: usize,
        /// The chunk.
        chunk: Chunk,
    },
    /// The connection is no more. Every chunk has been reported before.
    Closed {
        /// Which connection.
        lane: usize,
        /// Why.
        error: LaneError,
    },
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
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
    /// A reply to nothing.
    #[error("the node sent a reply that nothing asked for")]
    Unasked,
    /// The replay loop is gone.
    #[error("the replay has ended")]
    Abandoned,
}

/// Serves the queue until it is closed and everything is answered, or until the connection fails.
///
/// Nothing is sent before the node has said that it is one of `members`: a pod's address may be another pod's by now.
pub async fn run(
    lane: usize,
    address: SocketAddr,
    members: Arc<BTreeSet<NodeId>>,
    mut queue: mpsc::Receiver<Chunk>,
    reports: mpsc::Sender<Report>,
) {
    let mut inflight = VecDeque::new();
    let result = match connect(address, members).await {
        Ok(stream) => {
            Connection::new(lane, stream, &mut inflight)
                .serve(&mut queue, &reports)
                .await
        }
        Err(error) => Err(error),
    };
    let Err(error) = result else { return };
    queue.close();
    while let Some(chunk) = queue.recv().await {
        inflight.push_back(chunk);
    }
    for mut chunk in inflight {
        chunk.bounce_rest(&Verdict::Wait(Pause::Disconnected));
        if reports
            .send(Report::Answered { lane, chunk })
            .await
            .is_err()
        {
            return;
        }
    }
    // Nobody listens any more when the replay itself has ended: then there is nobody to tell.
    let _ = reports.send(Report::Closed { lane, error }).await;
}

async fn connect(
    address: SocketAddr,
    members: Arc<BTreeSet<NodeId>>,
) -> Result<NodeStream, LaneError> {
    let endpoint = Endpoint::new(address, CONNECT_TIMEOUT).expecting(members);
    dial(&endpoint).await.map_err(LaneError::Connect)
}

struct Connection<'a> {
    lane: usize,
    reader: ReadHalf<NodeStream>,
    writer: WriteHalf<NodeStream>,
    /// Chunks written or being written, oldest first.
    inflight: &'a mut VecDeque<Chunk>,
    /// Index in `inflight` of the chunk being written, and how much of it has been.
    writing: usize,
    written: usize,
    replies: BytesMut,
    heard: Instant,
}

impl<'a> Connection<'a> {
    fn new(lane: usize, stream: NodeStream, inflight: &'a mut VecDeque<Chunk>) -> Self {
        let (reader, writer) = split(stream);
        Self {
            lane,
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
        queue: &mut mpsc::Receiver<Chunk>,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), LaneError> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || !self.inflight.is_empty() {
            let chunk = self.inflight.get(self.writing);
            let pending = chunk.and_then(|chunk| chunk.bytes.get(self.written..));
            let pending = pending.unwrap_or_default();
            tokio::select! {
                read = self.reader.read_buf(&mut self.replies) => {
                    if read.map_err(LaneError::Broken)? == 0 {
                        return Err(LaneError::ClosedByNode);
                    }
                    self.take_replies(reports).await?;
                }
                wrote = self.writer.write(pending), if !pending.is_empty() => {
                    self.wrote(wrote.map_err(LaneError::Broken)?);
                }
                chunk = queue.recv(), if open => match chunk {
                    Some(chunk) => self.push(chunk),
                    None => open = false,
                },
                _ = tick.tick() => {
                    if !self.inflight.is_empty() && self.heard.elapsed() > REPLY_TIMEOUT {
                        return Err(LaneError::Silent);
                    }
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, chunk: Chunk) {
        if self.inflight.is_empty() {
            self.heard = Instant::now();
        }
        self.inflight.push_back(chunk);
    }

    fn wrote(&mut self, count: usize) {
        self.written += count;
        let length = self.inflight.get(self.writing).map(|c| c.bytes.len());
        if length.is_some_and(|length| self.written >= length) {
            self.writing += 1;
            self.written = 0;
        }
    }

    async fn take_replies(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), LaneError> {
        self.heard = Instant::now();
        while let Some((reply, length)) = next_reply(&self.replies)? {
            match reply {
                Reply::Ok(mut count) => {
                    while count > 0 {
                        let front = self.inflight.front_mut().ok_or(LaneError::Unasked)?;
                        count -= front.take_ok(count);
                        self.report_answered(reports).await?;
                    }
                }
                Reply::Error(text) => {
                    let verdict = read_error(text);
                    let front = self.inflight.front_mut().ok_or(LaneError::Unasked)?;
                    front.take_error(verdict);
                    self.report_answered(reports).await?;
                }
            }
            self.replies.advance(length);
        }
        Ok(())
    }

    async fn report_answered(&mut self, reports: &mpsc::Sender<Report>) -> Result<(), LaneError> {
        if !self.inflight.front().is_some_and(Chunk::is_answered) {
            return Ok(());
        }
        // Replies to what has not been sent: the counts would no longer tell which key was executed. The chunk stays in the
        // queue, from which it is reported.
        self.writing = self.writing.checked_sub(1).ok_or(LaneError::Unasked)?;
        let Some(chunk) = self.inflight.pop_front() else {
            return Ok(());
        };
        let lane = self.lane;
        reports
            .send(Report::Answered { lane, chunk })
            .await
            .map_err(|_| LaneError::Abandoned)
    }
}
