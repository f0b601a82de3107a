//! Keeps the windows full and counts what is written: takes events, follows redirects, waits while a refusal is temporary,
//! and gives up when the patience is used up.

use super::{
    batch::{CommandBatch, Requeued},
    command::{self, KeyRecord},
    connection::ConnectionEvent,
    connections::{NodeConnections, Window},
    error::ReplayError,
    functions,
    reply_action::{ReplyAction, RetryReason},
    routes::read_routes,
    tracker::{Progress, ProgressTracker},
};
use common::{
    cluster::{seeds::Seeds, slots::Slot},
    errors::Recovery,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

/// The first wait after a temporary refusal; it doubles up to [`LONGEST_DELAY`].
const FIRST_DELAY: Duration = Duration::from_millis(20);
const LONGEST_DELAY: Duration = Duration::from_secs(2);
/// How long to wait before a library of functions is loaded again.
const LOAD_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Rounds of redirects that may follow each other without a key written before they are slowed down.
const FREE_ROUNDS: u32 = 3;
/// The routes are read again at most this often while keys are being written.
const REFRESH_EVERY: Duration = Duration::from_millis(500);

/// The state of one replay towards its target.
pub struct ReplaySession<'a> {
    connections: NodeConnections,
    tracker: ProgressTracker,
    seeds: &'a Seeds,
    progress: &'a watch::Sender<Progress>,
    patience: Duration,
    /// Commands to be sent again.
    deferred: Vec<Requeued>,
    /// Rounds of sending again since the last key was written.
    rounds: u32,
    /// When the first of those rounds began.
    failing_since: Instant,
    refreshed: Instant,
    /// The routes are known to be out of date.
    stale: bool,
    /// What ended the last connection, for the message of [`ReplayError::Unavailable`].
    last_failure: Option<String>,
    /// The node that did not execute the last command.
    refused_by: Option<SocketAddr>,
}

impl<'a> ReplaySession<'a> {
    /// Reads the routes.
    pub async fn open(
        seeds: &'a Seeds,
        window: Window,
        patience: Duration,
        from: Progress,
        progress: &'a watch::Sender<Progress>,
    ) -> Result<Self, ReplayError> {
        let routes = read_routes(seeds.addresses(), seeds.access()).await?;
        let now = Instant::now();
        Ok(Self {
            connections: NodeConnections::new(&routes, window),
            tracker: ProgressTracker::resume(from),
            seeds,
            progress,
            patience,
            deferred: Vec::new(),
            rounds: 0,
            failing_since: now,
            refreshed: now,
            stale: false,
            last_failure: None,
            refused_by: None,
        })
    }

    /// Puts a key into the batch of its primary.
    pub fn write(&mut self, slot: Slot, block: u64, record: &KeyRecord<'_>) {
        if let Some(batch) = self.connections.filling(slot, block) {
            command::encode(slot, record, batch);
            self.tracker.sent(block);
        }
    }

    /// A key is left out because it has expired.
    pub fn skip_expired(&mut self, block: u64) {
        self.tracker.expired(block);
    }

    /// A key is left out because its slot is not the shard's.
    pub fn skip_foreign(&mut self, block: u64) {
        self.tracker.foreign(block);
    }

    /// No more records start before `block`.
    pub fn complete_before(&mut self, block: u64) {
        if self.tracker.complete_before(block) {
            self.publish();
        }
    }

    /// How far the unit is.
    pub fn progress(&self) -> Progress {
        self.tracker.progress()
    }

    /// Sends batches of at least `minimum` bytes, and waits until every node has room for more.
    pub async fn push(&mut self, minimum: usize) -> Result<(), ReplayError> {
        self.connections.flush(minimum);
        while let Some(event) = self.connections.try_event() {
            self.take(event)?;
        }
        self.wait_for_room().await?;
        self.send_again().await
    }

    /// Loads a library of functions into every primary; tries for as long as keys are tried.
    pub async fn load(&self, code: &[u8]) -> Result<(), ReplayError> {
        let until = Instant::now() + self.patience;
        loop {
            let loaded = functions::load(&self.nodes(), self.connections.members(), code).await;
            let Err(error) = loaded else { return Ok(()) };
            if error.recovery() != Recovery::Soon || Instant::now() >= until {
                return Err(error);
            }
            tracing::info!(%error, "loading a library of functions failed; retrying");
            sleep(LOAD_RETRY_INTERVAL).await;
        }
    }

    /// Waits until every key that was sent is written.
    pub async fn drain(&mut self) -> Result<(), ReplayError> {
        self.push(0).await?;
        while self.tracker.outstanding() > 0 {
            self.take_next().await?;
            self.send_again().await?;
            self.connections.flush(0);
        }
        Ok(())
    }

    /// Waits for the next event. Cancelling the future loses no event.
    pub async fn event(&mut self) -> ConnectionEvent {
        match self.connections.event().await {
            Some(event) => event,
            // The sender lives in `connections`: the channel cannot be closed.
            None => std::future::pending().await,
        }
    }

    /// Counts what an event reports, and keeps what is to be sent again.
    pub fn take(&mut self, event: ConnectionEvent) -> Result<(), ReplayError> {
        self.connections.settle(&event);
        match event {
            ConnectionEvent::Answered { connection, batch } => self.take_batch(connection, batch),
            ConnectionEvent::Closed { connection, error } => {
                let node = self.connections.address(connection);
                tracing::info!(?node, %error, "connection to a node of the target lost");
                self.last_failure = Some(error.to_string());
                self.stale = true;
                Ok(())
            }
        }
    }

    fn take_batch(
        &mut self,
        connection: usize,
        mut batch: CommandBatch,
    ) -> Result<(), ReplayError> {
        let executed = batch.executed() as u64;
        if executed > 0 {
            self.rounds = 0;
            if self.tracker.acknowledged(batch.block, executed) {
                self.publish();
            }
        }
        for requeued in batch.requeued.drain(..) {
            self.refused_by = self.connections.address(connection);
            match &requeued.action {
                ReplyAction::Refused(refusal) => {
                    return Err(ReplayError::Refused {
                        node: self.refused_by.ok_or(ReplayError::NoPrimaries)?,
                        slot: requeued.slot,
                        block: requeued.block,
                        refusal: refusal.clone(),
                    });
                }
                ReplyAction::Moved { slot, primary } => {
                    self.stale = true;
                    if let Some(primary) = primary {
                        self.connections.set_primary(*slot, *primary);
                    }
                }
                ReplyAction::Ask { .. } | ReplyAction::Wait(_) => {}
            }
            self.deferred.push(requeued);
        }
        self.connections.recycle(batch);
        Ok(())
    }

    async fn take_next(&mut self) -> Result<(), ReplayError> {
        let event = self.event().await;
        self.take(event)
    }

    async fn wait_for_room(&mut self) -> Result<(), ReplayError> {
        while self.connections.is_full() {
            self.take_next().await?;
        }
        Ok(())
    }

    /// Sends requeued commands until none is left. Nothing new is decoded meanwhile: what waits is never more than what the
    /// windows hold.
    async fn send_again(&mut self) -> Result<(), ReplayError> {
        while let Some(last) = self.deferred.last() {
            let reason = match last.action {
                ReplyAction::Wait(reason) => Some(reason),
                ReplyAction::Moved { .. } | ReplyAction::Ask { .. } | ReplyAction::Refused(_) => {
                    None
                }
            };
            self.check_patience(reason)?;
            if self.rounds == 0 {
                self.failing_since = Instant::now();
            }
            if reason.is_some() || self.rounds >= FREE_ROUNDS {
                self.back_off().await?;
            }
            if self.stale && (reason.is_some() || self.refreshed.elapsed() >= REFRESH_EVERY) {
                self.refresh().await;
            }
            self.rounds += 1;
            let mut commands = std::mem::take(&mut self.deferred);
            // A batch holds commands of one block only.
            commands.sort_by_key(|command| command.block);
            for command in commands {
                self.send_one_again(&command);
                self.wait_for_room().await?;
            }
            self.connections.flush(0);
        }
        Ok(())
    }

    fn send_one_again(&mut self, command: &Requeued) {
        match command.action {
            ReplyAction::Ask {
                primary: Some(primary),
            } => self.connections.ask(primary, command),
            ReplyAction::Ask { primary: None }
            | ReplyAction::Moved { .. }
            | ReplyAction::Wait(_)
            | ReplyAction::Refused(_) => {
                if let Some(batch) = self.connections.filling(command.slot, command.block) {
                    batch.append(command);
                }
            }
        }
    }

    fn check_patience(&self, reason: Option<RetryReason>) -> Result<(), ReplayError> {
        if self.rounds == 0 || self.failing_since.elapsed() <= self.patience {
            return Ok(());
        }
        Err(ReplayError::Unavailable {
            patience: self.patience,
            reason: reason.unwrap_or(RetryReason::TryAgain),
            node: self.refused_by.ok_or(ReplayError::NoPrimaries)?,
            failure: self.last_failure.clone(),
        })
    }

    /// Waits, longer each time, and takes events meanwhile.
    async fn back_off(&mut self) -> Result<(), ReplayError> {
        let delay = FIRST_DELAY.saturating_mul(1 << self.rounds.min(8));
        let until = Instant::now() + delay.min(LONGEST_DELAY);
        loop {
            let event = tokio::select! {
                event = self.connections.event() => event,
                () = sleep_until(until) => return Ok(()),
            };
            if let Some(event) = event {
                self.take(event)?;
            }
        }
    }

    /// Reads the routes again. After a failure the next round tries again until the patience is used up.
    async fn refresh(&mut self) {
        match read_routes(&self.nodes(), self.connections.members()).await {
            Ok(routes) => {
                self.connections.set_routes(&routes);
                self.stale = false;
            }
            Err(error) => tracing::warn!(%error, "the topology of the target cannot be read"),
        }
        self.refreshed = Instant::now();
    }

    /// Every node that is known, where it was last.
    fn nodes(&self) -> Vec<SocketAddr> {
        let mut nodes = self.connections.addresses();
        nodes.extend_from_slice(self.seeds.addresses());
        nodes
    }

    fn publish(&self) {
        self.progress.send_replace(self.tracker.progress());
    }
}
