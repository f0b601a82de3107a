//! Keeps the windows full and the books straight: takes reports, follows redirects, waits out passing trouble, and gives up
//! when it lasts.

use super::{
    chunk::{Bounced, Chunk},
    command::{self, Record},
    error::ReplayError,
    functions,
    lane::Report,
    lanes::{Lanes, Window},
    ledger::{Ledger, Progress},
    owners,
    verdict::{Pause, Verdict},
};
use common::cluster::slots::Slot;
use std::{net::SocketAddr, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

/// The first wait after a passing refusal; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long to wait before a library of functions is loaded again.
const LOAD_PAUSE: Duration = Duration::from_secs(1);
/// Rounds of redirects that may follow each other without a key written before they are slowed down.
const FREE_ROUNDS: u32 = 3;
/// The slot map is read again at most this often while keys are being written.
const REFRESH_EVERY: Duration = Duration::from_millis(500);

/// The state of one replay towards its target.
pub struct Session<'a> {
    lanes: Lanes,
    ledger: Ledger,
    seeds: &'a [SocketAddr],
    progress: &'a watch::Sender<Progress>,
    patience: Duration,
    /// Commands to be sent again.
    deferred: Vec<Bounced>,
    /// Rounds of sending again since the last key was written.
    rounds: u32,
    /// When the first of those rounds began.
    troubled: Instant,
    refreshed: Instant,
    /// The slot map is known to be out of date.
    stale: bool,
    /// What ended the last connection, for the message if it comes to that.
    trouble: Option<String>,
    /// The node that bounced the last command.
    culprit: Option<SocketAddr>,
}

impl<'a> Session<'a> {
    /// Reads the slot map and is ready to write.
    pub async fn open(
        seeds: &'a [SocketAddr],
        window: Window,
        patience: Duration,
        from: Progress,
        progress: &'a watch::Sender<Progress>,
    ) -> Result<Self, ReplayError> {
        let map = owners::read(seeds, None).await?;
        let now = Instant::now();
        Ok(Self {
            lanes: Lanes::new(&map, window),
            ledger: Ledger::resume(from),
            seeds,
            progress,
            patience,
            deferred: Vec::new(),
            rounds: 0,
            troubled: now,
            refreshed: now,
            stale: false,
            trouble: None,
            culprit: None,
        })
    }

    /// Puts a key into the chunk of its owner.
    pub fn write(&mut self, slot: Slot, block: u64, record: &Record<'_>) {
        if let Some(chunk) = self.lanes.filling(slot, block) {
            command::encode(slot, record, chunk);
            self.ledger.sent(block);
        }
    }

    /// A key is left out because it has expired.
    pub fn skip_expired(&mut self, block: u64) {
        self.ledger.expired(block);
    }

    /// A key is left out because its slot is not the shard's.
    pub fn skip_foreign(&mut self, block: u64) {
        self.ledger.foreign(block);
    }

    /// No more records start before `block`.
    pub fn complete_before(&mut self, block: u64) {
        if self.ledger.complete_before(block) {
            self.publish();
        }
    }

    /// How far the unit is.
    pub fn progress(&self) -> Progress {
        self.ledger.progress()
    }

    /// Sends chunks of at least `minimum` bytes, and waits until every node has room for more.
    pub async fn push(&mut self, minimum: usize) -> Result<(), ReplayError> {
        self.lanes.flush(minimum);
        while let Some(report) = self.lanes.try_report() {
            self.take(report)?;
        }
        self.wait_for_room().await?;
        self.send_again().await
    }

    /// Loads a library of functions into every primary; tries for as long as keys are tried.
    pub async fn load(&self, code: &[u8]) -> Result<(), ReplayError> {
        let until = Instant::now() + self.patience;
        loop {
            let loaded = functions::load(&self.nodes(), self.lanes.members(), code).await;
            let Err(error) = loaded else { return Ok(()) };
            if !error.is_transient() || Instant::now() >= until {
                return Err(error);
            }
            tracing::info!(%error, "a library of functions is loaded again in a moment");
            sleep(LOAD_PAUSE).await;
        }
    }

    /// Waits until every key that was sent is written.
    pub async fn drain(&mut self) -> Result<(), ReplayError> {
        self.push(0).await?;
        while self.ledger.outstanding() > 0 {
            self.take_next().await?;
            self.send_again().await?;
            self.lanes.flush(0);
        }
        Ok(())
    }

    /// Waits for the next report. To be awaited beside something else; losing the race loses no report.
    pub async fn report(&mut self) -> Report {
        match self.lanes.report().await {
            Some(report) => report,
            // The sender lives in `lanes`: the channel cannot be closed.
            None => std::future::pending().await,
        }
    }

    /// Keeps the books of a report.
    pub fn take(&mut self, report: Report) -> Result<(), ReplayError> {
        self.lanes.settle(&report);
        match report {
            Report::Answered { lane, chunk } => self.take_chunk(lane, chunk),
            Report::Closed { lane, error } => {
                let node = self.lanes.address(lane);
                tracing::info!(?node, %error, "connection to a node of the target lost");
                self.trouble = Some(error.to_string());
                self.stale = true;
                Ok(())
            }
        }
    }

    fn take_chunk(&mut self, lane: usize, mut chunk: Chunk) -> Result<(), ReplayError> {
        let executed = chunk.executed() as u64;
        if executed > 0 {
            self.rounds = 0;
            if self.ledger.acknowledged(chunk.block, executed) {
                self.publish();
            }
        }
        for bounced in chunk.bounced.drain(..) {
            self.culprit = self.lanes.address(lane);
            match &bounced.verdict {
                Verdict::Refused(refusal) => {
                    return Err(ReplayError::Refused {
                        node: self.culprit.ok_or(ReplayError::NoOwners)?,
                        slot: bounced.slot,
                        block: bounced.block,
                        refusal: refusal.clone(),
                    });
                }
                Verdict::Moved { slot, owner } => {
                    self.stale = true;
                    if let Some(owner) = owner {
                        self.lanes.set_owner(*slot, *owner);
                    }
                }
                Verdict::Ask { .. } | Verdict::Wait(_) => {}
            }
            self.deferred.push(bounced);
        }
        self.lanes.recycle(chunk);
        Ok(())
    }

    async fn take_next(&mut self) -> Result<(), ReplayError> {
        let report = self.report().await;
        self.take(report)
    }

    async fn wait_for_room(&mut self) -> Result<(), ReplayError> {
        while self.lanes.is_full() {
            self.take_next().await?;
        }
        Ok(())
    }

    /// Sends what came back again, until nothing is left to be sent again. Nothing new is decoded meanwhile: what waits
    /// is never more than what the windows hold.
    async fn send_again(&mut self) -> Result<(), ReplayError> {
        while let Some(last) = self.deferred.last() {
            let pause = match last.verdict {
                Verdict::Wait(pause) => Some(pause),
                Verdict::Moved { .. } | Verdict::Ask { .. } | Verdict::Refused(_) => None,
            };
            self.check_patience(pause)?;
            if self.rounds == 0 {
                self.troubled = Instant::now();
            }
            if pause.is_some() || self.rounds >= FREE_ROUNDS {
                self.pause().await?;
            }
            if self.stale && (pause.is_some() || self.refreshed.elapsed() >= REFRESH_EVERY) {
                self.refresh().await;
            }
            self.rounds += 1;
            let mut commands = std::mem::take(&mut self.deferred);
            // A chunk holds commands of one block only.
            commands.sort_by_key(|command| command.block);
            for command in commands {
                self.send_one_again(&command);
                self.wait_for_room().await?;
            }
            self.lanes.flush(0);
        }
        Ok(())
    }

    fn send_one_again(&mut self, command: &Bounced) {
        match command.verdict {
            Verdict::Ask { owner: Some(owner) } => self.lanes.ask(owner, command),
            Verdict::Ask { owner: None }
            | Verdict::Moved { .. }
            | Verdict::Wait(_)
            | Verdict::Refused(_) => {
                if let Some(chunk) = self.lanes.filling(command.slot, command.block) {
                    chunk.append(command);
                }
            }
        }
    }

    fn check_patience(&self, pause: Option<Pause>) -> Result<(), ReplayError> {
        if self.rounds == 0 || self.troubled.elapsed() <= self.patience {
            return Ok(());
        }
        Err(ReplayError::Unavailable {
            patience: self.patience,
            pause: pause.unwrap_or(Pause::TryAgain),
            node: self.culprit.ok_or(ReplayError::NoOwners)?,
            trouble: self.trouble.clone(),
        })
    }

    /// Waits a while, longer each time, and keeps the books meanwhile.
    async fn pause(&mut self) -> Result<(), ReplayError> {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.rounds.min(8));
        let until = Instant::now() + pause.min(LONGEST_PAUSE);
        loop {
            let report = tokio::select! {
                report = self.lanes.report() => report,
                () = sleep_until(until) => return Ok(()),
            };
            if let Some(report) = report {
                self.take(report)?;
            }
        }
    }

    /// Reads the slot map again. A failure is not the end: the next round tries again until the patience is used up.
    async fn refresh(&mut self) {
        match owners::read(&self.nodes(), Some(self.lanes.members())).await {
            Ok(map) => {
                self.lanes.set_map(&map);
                self.stale = false;
            }
            Err(error) => tracing::warn!(%error, "the slot map of the target cannot be read"),
        }
        self.refreshed = Instant::now();
    }

    /// Every node that is known, where it was last.
    fn nodes(&self) -> Vec<SocketAddr> {
        let mut nodes = self.lanes.addresses();
        nodes.extend_from_slice(self.seeds);
        nodes
    }

    fn publish(&self) {
        self.progress.send_replace(self.ledger.progress());
    }
}
