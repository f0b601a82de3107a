//! Replays one stored shard into a cluster of any shape: verified blocks in, RESTORE commands out, routed by slot.
//!
//! ```text
//! BlockReader ──► RecordSplitter ──► ReplaySession ──► NodeConnection ──► Redis
//!   verified        records            windows,          one a node, writes
//!   blocks                             redirects         and reads at the same time
//! ```
//! A block is acknowledged when every record that starts in it is written; another attempt goes on at the first block
//! that is not. Every command carries REPLACE, so that sending it twice does no harm.
//!
//! Memory: the blocks read ahead, the windows of the nodes, and the longest value three times; `value_limit` bounds that one.

mod batch;
mod command;
mod connection;
mod connections;
mod error;
mod functions;
mod replies;
mod reply_action;
mod routes;
mod session;
mod splitter;
mod start;
mod tracker;
mod value_limit;
mod walk;

pub use connections::Window;
pub use error::ReplayError;
pub use reply_action::{Refusal, RetryReason};
pub use routes::{Route, Routes, read_routes};
pub use tracker::Progress;
pub use value_limit::ValueLimit;
pub use walk::walk;

use command::{KeyRecord, Usage};
use common::{
    cluster::{
        seeds::Seeds,
        slots::{Slot, SlotSet},
    },
    rdb::Key,
    storage::{BlockReader, CompressionPool, ObjectStore, RawBlock, ShardIndex, StorageError},
};
use connections::BATCH_BYTES;
use jiff::Timestamp;
use session::ReplaySession;
use splitter::{Found, RecordSplitter, SplitRecord};
use start::Start;
use std::{ops::ControlFlow, pin::pin, sync::Arc, time::Duration};
use tokio::sync::watch;

/// Bytes of commands that are made before the windows are checked again.
const STEP_BYTES: usize = 64 * 1024;

/// One stored shard, and where it goes.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// Key of the shard's object.
    pub key: String,
    /// Its index, proven to be the one that the manifest speaks of.
    pub index: Arc<ShardIndex>,
    /// The slots that the shard owned. Keys of other slots are leftovers of an aborted move.
    pub slots: SlotSet,
    /// Nodes of the target, any of them.
    pub seeds: Seeds,
    /// How far an earlier attempt came.
    pub from: Progress,
    /// How much may be in flight to one node.
    pub window: Window,
    /// How long no key may be written before the replay gives up.
    pub patience: Duration,
    /// The longest value that is taken.
    pub value_limit: ValueLimit,
}

/// Where blocks come from.
pub trait Blocks: Send {
    /// The next block, `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<RawBlock>, StorageError>> + Send;
}

impl Blocks for BlockReader {
    fn next(&mut self) -> impl Future<Output = Result<Option<RawBlock>, StorageError>> + Send {
        BlockReader::next(self)
    }
}

/// Replays a shard from storage. Dropping the future stops everything; what was reported by then is written.
pub async fn replay(
    store: ObjectStore,
    pool: CompressionPool,
    request: &ReplayRequest,
    progress: &watch::Sender<Progress>,
) -> Result<Progress, ReplayError> {
    let first = Start::of(&request.index, request.from).block;
    let first = usize::try_from(first).unwrap_or(usize::MAX);
    let index = Arc::clone(&request.index);
    let blocks = BlockReader::new(store, request.key.clone(), index, first, pool);
    replay_blocks(blocks, request, progress).await
}

/// Replays blocks that come from anywhere, from the place on that the request names.
pub async fn replay_blocks(
    mut blocks: impl Blocks,
    request: &ReplayRequest,
    progress: &watch::Sender<Progress>,
) -> Result<Progress, ReplayError> {
    let start = Start::of(&request.index, request.from);
    progress.send_replace(start.progress);
    let mut session = ReplaySession::open(
        &request.seeds,
        request.window,
        request.patience,
        start.progress,
        progress,
    )
    .await?;
    let mut splitter = RecordSplitter::new(start.resume, request.value_limit);
    while let Some(block) = next_block(&mut blocks, &mut session).await? {
        replay_block(request, &block, &mut splitter, &mut session).await?;
        let open = splitter.end_block(&block)?;
        session.complete_before(open);
    }
    let blocks = request.index.blocks.len() as u64;
    if !splitter.is_finished() && start.block < blocks {
        return Err(ReplayError::Truncated {
            shard: request.index.shard,
        });
    }
    session.complete_before(blocks);
    session.drain().await?;
    Ok(session.progress())
}

/// Fetches the next block, and takes events meanwhile.
async fn next_block(
    blocks: &mut impl Blocks,
    session: &mut ReplaySession<'_>,
) -> Result<Option<RawBlock>, ReplayError> {
    let mut next = pin!(blocks.next());
    loop {
        let event = tokio::select! {
            block = &mut next => return Ok(block?),
            event = session.event() => event,
        };
        session.take(event)?;
    }
}

/// Sends the records of one block as far as they are complete, and never more than the windows hold.
async fn replay_block(
    request: &ReplayRequest,
    block: &RawBlock,
    splitter: &mut RecordSplitter,
    session: &mut ReplaySession<'_>,
) -> Result<(), ReplayError> {
    loop {
        let mut step = ReplayStep {
            request,
            session,
            now_ms: Timestamp::now().as_millisecond(),
            bytes: 0,
            function: None,
            failure: None,
        };
        let more = splitter.feed(block, &mut |found| step.take(found));
        let more = more.map_err(|source| ReplayError::Records {
            shard: request.index.shard,
            source,
        })?;
        if let Some(failure) = step.failure {
            return Err(failure);
        }
        if let Some(code) = step.function {
            session.load(&code).await?;
        }
        session.push(if more { BATCH_BYTES } else { 0 }).await?;
        if !more {
            return Ok(());
        }
    }
}

/// Records taken without waiting in between.
struct ReplayStep<'a, 'b> {
    request: &'a ReplayRequest,
    session: &'a mut ReplaySession<'b>,
    now_ms: i64,
    bytes: usize,
    function: Option<Vec<u8>>,
    failure: Option<ReplayError>,
}

impl ReplayStep<'_, '_> {
    fn take(&mut self, found: Found<'_>) -> ControlFlow<()> {
        match found {
            Found::Record(cut) => self.record(&cut),
            Found::Function(code) => {
                self.function = Some(code.to_vec());
                ControlFlow::Break(())
            }
            Found::ModuleAux => self.fail(walk::module_aux()),
        }
    }

    fn record(&mut self, cut: &SplitRecord<'_>) -> ControlFlow<()> {
        let key = &cut.key;
        if let Err(error) = walk::sendable(key, cut.body.len(), cut.block) {
            return self.fail(error);
        }
        let longest = self.request.value_limit;
        if cut.body.len() > longest.bytes() {
            return self.fail(ReplayError::too_long(key.key, cut.block, longest));
        }
        let slot = Slot::of_key(key.key);
        if !self.request.slots.contains(slot) {
            self.session.skip_foreign(cut.block);
        } else if key.expire_ms.is_some_and(|at| at <= self.now_ms) {
            self.session.skip_expired(cut.block);
        } else {
            let record = KeyRecord {
                key: key.key,
                kind: key.kind,
                body: cut.body,
                expire_ms: key.expire_ms,
                usage: usage(key),
            };
            self.session.write(slot, cut.block, &record);
            self.bytes += cut.body.len() + key.key.len();
        }
        if self.bytes >= STEP_BYTES {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn fail(&mut self, error: ReplayError) -> ControlFlow<()> {
        self.failure = Some(error);
        ControlFlow::Break(())
    }
}

/// A key carries one of the two at most.
fn usage(key: &Key<'_>) -> Usage {
    match (key.idle_seconds, key.frequency) {
        (Some(seconds), _) => Usage::Idle(seconds),
        (None, Some(counter)) => Usage::Frequency(counter),
        (None, None) => Usage::Unknown,
    }
}
