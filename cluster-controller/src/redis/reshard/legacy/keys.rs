//! Moves the keys of open slots from one node: lists them, divides them into calls, and decides what becomes of calls that fail.

use super::{
    calls::{CallSize, ListedKey, MigrateCall},
    reply::MigrateReply,
    serving::still_serves,
    strays::{LeftValues, remove_strays},
};
use crate::redis::reshard::{
    checks,
    context::Context,
    error::{ReshardError, refusal, text_of},
    nodes::NodeLink,
};
use common::cluster::{node::NodeError, slots::Slot};
use redis::{Cmd, RedisError, Value, cmd, pipe};
use secrecy::ExposeSecret;
use std::{
    collections::VecDeque,
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

/// Calls of a source under way: while it carries one out the next one reaches it, so that it is never idle. Between two of them it answers
/// its clients. A call with a large key goes alone: it takes longer than others are waited for.
const CALLS: u32 = 2;
/// Most keys of a slot that are listed at a time.
const LISTED: usize = 500;
/// Slots in one question for keys, and keys in one for sizes: the source answers no client while it answers these.
const SLOTS_AT_ONCE: usize = 8;
const SIZES_AT_ONCE: usize = 250;
/// Attempts after a failure that may pass.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(100);
/// After such a pause the target proves again who it is.
const UNPROVEN: Duration = Duration::from_millis(500);
/// Times that all listed keys of a slot may turn out to be gone and be listed again.
const EMPTY_ROUNDS: u32 = 5;

/// Which node is right about a key that both have: the one that serves the slot, since clients use its copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RightSide {
    /// The slot is given away: the copy at the target is what an interrupted call left, and is removed.
    Source,
    /// Keys come home: the copy at the source is removed.
    Target,
}

/// Moves keys out of one node.
pub(super) struct KeyMover<'a> {
    context: &'a Context<'a>,
    from: &'a NodeLink,
    size: Mutex<CallSize>,
    calls: Semaphore,
    /// When the last call was answered.
    answered: Mutex<Option<Instant>>,
}

impl<'a> KeyMover<'a> {
    pub(super) fn new(context: &'a Context<'a>, from: &'a NodeLink) -> Self {
        Self {
            context,
            from,
            size: Mutex::new(CallSize::new(context.limits.largest_call())),
            calls: Semaphore::new(CALLS as usize),
            answered: Mutex::default(),
        }
    }

    /// The node that the keys come from.
    pub(super) fn from(&self) -> &'a NodeLink {
        self.from
    }

    /// Moves keys until the node has none of these slots. The slots are marked on both sides.
    pub(super) async fn drain(
        &self,
        slots: &[Slot],
        to: &NodeLink,
        right: RightSide,
    ) -> Result<(), ReshardError> {
        let mut rest = slots.to_vec();
        let mut empty_rounds = 0;
        loop {
            rest = self.with_keys(rest).await?;
            let Some(slot) = rest.first().copied() else {
                return Ok(());
            };
            let mut gone = 0;
            for (slot, mut keys) in self.list(&rest, right).await? {
                while !keys.is_empty() {
                    let call = locked(&self.size).take(&mut keys);
                    gone += self.deliver(slot, to, &call, right).await?;
                }
            }
            empty_rounds = if gone > 0 { 0 } else { empty_rounds + 1 };
            if empty_rounds > EMPTY_ROUNDS {
                let node = self.from.id;
                return Err(ReshardError::KeysRemain { slot, node });
            }
        }
    }

    /// Those of the slots of which the node holds keys.
    async fn with_keys(&self, slots: Vec<Slot>) -> Result<Vec<Slot>, ReshardError> {
        let counts = self.from.control.count_keys_in_slots(&slots).await;
        let counts = counts.map_err(|error| self.from.lost(error))?;
        let counted = slots.into_iter().zip(counts);
        Ok(counted
            .filter(|(_, keys)| *keys > 0)
            .map(|(slot, _)| slot)
            .collect())
    }

    /// The next keys of each slot, with their sizes.
    async fn list(
        &self,
        slots: &[Slot],
        right: RightSide,
    ) -> Result<Vec<(Slot, VecDeque<ListedKey>)>, ReshardError> {
        let mut lists = Vec::with_capacity(slots.len());
        for part in slots.chunks(SLOTS_AT_ONCE) {
            let mut questions = pipe();
            for slot in part {
                let question = questions.cmd("CLUSTER").arg("GETKEYSINSLOT");
                question.arg(slot.get()).arg(LISTED);
            }
            let answer: Result<Vec<Vec<Vec<u8>>>, NodeError> = self
                .from
                .control
                .ask_all("CLUSTER GETKEYSINSLOT", &questions)
                .await;
            let answer = answer.map_err(|error| self.from.lost(error))?;
            let mut sizes = self.measure(part, &answer, right).await?.into_iter();
            for (slot, keys) in part.iter().zip(answer) {
                let keys = keys.into_iter().zip(sizes.by_ref());
                let keys = keys.map(|(key, bytes)| ListedKey { key, bytes });
                lists.push((*slot, keys.collect()));
            }
        }
        Ok(lists)
    }

    /// The memory of each key, in their order. One that is gone by now has none.
    async fn measure(
        &self,
        slots: &[Slot],
        keys: &[Vec<Vec<u8>>],
        right: RightSide,
    ) -> Result<Vec<u64>, ReshardError> {
        let keys: Vec<&Vec<u8>> = keys.iter().flatten().collect();
        let mut measured = Vec::with_capacity(keys.len());
        for part in keys.chunks(SIZES_AT_ONCE) {
            let mut questions = pipe();
            for key in part {
                // Who does not serve a slot answers for it only to those who ask this way.
                if right == RightSide::Target {
                    questions.cmd("ASKING").ignore();
                }
                questions.cmd("MEMORY").arg("USAGE").arg(key);
            }
            let sizes = self
                .from
                .each::<Option<u64>>(slots, "MEMORY USAGE", questions)
                .await?;
            let sizes = sizes.into_iter().map(|size| size.ok().flatten());
            measured.extend(sizes.map(Option::unwrap_or_default));
        }
        Ok(measured)
    }

    /// Moves the keys of one call, and does not return before each is where it belongs. Returns how many are gone from here.
    async fn deliver(
        &self,
        slot: Slot,
        to: &NodeLink,
        call: &MigrateCall,
        right: RightSide,
    ) -> Result<u64, ReshardError> {
        let mut left = LeftValues::default();
        let mut failures = 0;
        loop {
            let (reply, message) = self.send(to, call).await?;
            match reply {
                MigrateReply::Moved => {
                    let keys = call.keys.len() as u64;
                    self.context.tracker.moved(keys, call.bytes);
                    return Ok(keys);
                }
                MigrateReply::NoKeys => return Ok(0),
                MigrateReply::Exists if right == RightSide::Target => {
                    return self.remove_copies(slot, to, call).await;
                }
                // Others of its keys were moved, and a call that breaks off after that says no more than this.
                MigrateReply::Exists if failures < ATTEMPTS => {
                    failures += 1;
                    self.note_left(slot, call, &mut left).await?;
                    self.remove_strays(slot, to, call, &left).await?;
                }
                MigrateReply::Broken if failures < ATTEMPTS && right == RightSide::Source => {
                    failures += 1;
                    self.note_left(slot, call, &mut left).await?;
                    sleep(PAUSE * 2_u32.pow(failures)).await;
                    self.remove_strays(slot, to, call, &left).await?;
                }
                MigrateReply::Broken | MigrateReply::Down if failures < ATTEMPTS => {
                    failures += 1;
                    sleep(PAUSE * 2_u32.pow(failures)).await;
                    if right == RightSide::Source {
                        still_serves(self.from, to, &[slot]).await?;
                    }
                }
                MigrateReply::Broken => {
                    return Err(ReshardError::Unreachable {
                        slot,
                        source_node: self.from.id,
                        target: to.id,
                        message,
                    });
                }
                MigrateReply::Down => return Err(ReshardError::ClusterDown { slot, message }),
                MigrateReply::Full => {
                    checks::has_room(to, call.bytes.max(1)).await?;
                    return Err(ReshardError::of_text(to.id, slot, message));
                }
                MigrateReply::Elsewhere => {
                    still_serves(self.from, to, &[slot]).await?;
                    return Err(ReshardError::of_text(self.from.id, slot, message));
                }
                MigrateReply::Exists | MigrateReply::Refused => {
                    return Err(ReshardError::of_text(self.from.id, slot, message));
                }
            }
        }
    }

    fn is_large(&self, call: &MigrateCall) -> bool {
        call.bytes > self.context.limits.bytes_per_call
    }

    /// Takes note of what the source still has of a call. A large value is not asked for again.
    async fn note_left(
        &self,
        slot: Slot,
        call: &MigrateCall,
        left: &mut LeftValues,
    ) -> Result<(), ReshardError> {
        if self.is_large(call) {
            return Ok(());
        }
        left.note(self.from, slot, call).await
    }

    /// What the target has of a call is left from one that broke off, if the source is still the one that clients are sent to.
    async fn remove_strays(
        &self,
        slot: Slot,
        to: &NodeLink,
        call: &MigrateCall,
        left: &LeftValues,
    ) -> Result<(), ReshardError> {
        // Never closed.
        let _turn = self.calls.acquire_many(CALLS).await.ok();
        still_serves(self.from, to, &[slot]).await?;
        remove_strays(self.from, to, (slot, call), left).await
    }

    /// Sends one call, when it is its turn.
    async fn send(
        &self,
        to: &NodeLink,
        call: &MigrateCall,
    ) -> Result<(MigrateReply, String), ReshardError> {
        let delay = self.context.delay(call.keys.len(), call.bytes);
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if delay >= UNPROVEN {
            // The source connects to an address, which may be another pod's by now.
            to.is_itself().await?;
        }
        let wait = self.context.limits.timeout(call.bytes);
        let command = migrate(to, call, wait);
        let turns = if self.is_large(call) { CALLS } else { 1 };
        // Never closed.
        let turn = self.calls.acquire_many(turns);
        let _turn = turn.await.ok();
        let sent = Instant::now();
        // The server bounds each of its steps by `wait`; another call may be before this one.
        let patience = wait * 4 + self.context.limits.call_timeout * 4;
        let answer = timeout(patience, self.from.data.ask::<Value>("MIGRATE", &command)).await;
        let answer = answer.unwrap_or_else(|_| Err(self.no_answer()));
        self.answered(call, sent);
        match answer {
            Ok(Value::SimpleString(status)) => Ok((MigrateReply::of_status(&status), status)),
            Ok(_) => Ok((MigrateReply::Moved, String::new())),
            Err(error) => match refusal(&error) {
                Some(text) => Ok((MigrateReply::of_error(&text), text)),
                None => Err(self.from.lost(error)),
            },
        }
    }

    /// Learns from the time that the source needed for the call, which begins when it was done with the one before.
    fn answered(&self, call: &MigrateCall, sent: Instant) {
        let now = Instant::now();
        let before = locked(&self.answered).replace(now);
        let waited = before.is_some_and(|before| before > sent);
        let began = before.map_or(sent, |before| before.max(sent));
        let took = now.saturating_duration_since(began);
        locked(&self.size).adapt(call, took, waited);
        self.context.tracker.called(took);
    }

    fn no_answer(&self) -> NodeError {
        NodeError::Lost {
            address: self.from.address,
            command: "MIGRATE",
            source: RedisError::from(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }

    /// Moves the keys of a call one by one, and removes here what the serving node has itself.
    async fn remove_copies(
        &self,
        slot: Slot,
        to: &NodeLink,
        call: &MigrateCall,
    ) -> Result<u64, ReshardError> {
        for key in &call.keys {
            let single = MigrateCall {
                keys: vec![key.clone()],
                bytes: call.bytes,
            };
            match self.send(to, &single).await? {
                (MigrateReply::Moved | MigrateReply::NoKeys, _) => {}
                (MigrateReply::Exists, _) => {
                    let mut commands = pipe();
                    commands.cmd("ASKING").ignore();
                    commands.cmd("UNLINK").arg(key);
                    let removed = self.from.each::<u64>(&[slot], "UNLINK", commands).await?;
                    for reply in removed {
                        reply.map_err(|error| {
                            let text = text_of(&error);
                            ReshardError::of_text(self.from.id, slot, text)
                        })?;
                    }
                }
                (_, message) => return Err(ReshardError::of_text(self.from.id, slot, message)),
            }
        }
        Ok(call.keys.len() as u64)
    }
}

fn migrate(to: &NodeLink, call: &MigrateCall, wait: Duration) -> Cmd {
    let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let mut command = cmd("MIGRATE");
    command
        .arg(to.address.ip().to_string())
        .arg(to.address.port())
        .arg("")
        .arg(0)
        .arg(wait);
    if let Some(credentials) = &to.credentials {
        // The server keeps these out of SLOWLOG and MONITOR.
        command
            .arg("AUTH2")
            .arg(&credentials.username)
            .arg(credentials.password.expose_secret());
    }
    command.arg("KEYS").arg(&call.keys);
    command
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
