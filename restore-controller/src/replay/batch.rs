//! Commands that are in flight together: one buffer, one write, one event back. Batches are recycled between the replay loop
//! and the connections, so that nothing is allocated while a replay runs.

use super::reply_action::ReplyAction;
use bytes::BytesMut;
use common::cluster::slots::Slot;

/// Precedes a command that follows an ASK redirect.
pub const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Commands of one block for one node.
#[derive(Debug, Default)]
pub struct CommandBatch {
    /// The block in which the commands' records start.
    pub block: u64,
    /// The commands as they go over the wire.
    pub bytes: BytesMut,
    commands: Vec<BatchEntry>,
    /// Whether each command is preceded by ASKING, and so has two replies.
    asking: bool,
    replies: usize,
    /// Commands that the node did not execute.
    pub requeued: Vec<Requeued>,
}

#[derive(Clone, Copy, Debug)]
struct BatchEntry {
    slot: Slot,
    /// End of the command in the batch's bytes.
    end: usize,
}

/// A command that was not executed, and what the node said.
#[derive(Debug)]
pub struct Requeued {
    /// The slot of its key.
    pub slot: Slot,
    /// The command without ASKING.
    pub bytes: Vec<u8>,
    /// The block in which its record starts.
    pub block: u64,
    /// Why it was not executed.
    pub action: ReplyAction,
}

impl CommandBatch {
    /// Empties the batch for another use; its memory stays.
    pub fn reset(&mut self, block: u64) {
        self.block = block;
        self.bytes.clear();
        self.commands.clear();
        self.asking = false;
        self.replies = 0;
        self.requeued.clear();
    }

    /// A batch of one command that is sent again.
    pub fn of_requeued(command: &Requeued, asking: bool) -> Self {
        let mut batch = Self {
            block: command.block,
            asking,
            ..Self::default()
        };
        if asking {
            batch.bytes.extend_from_slice(ASKING);
        }
        batch.append(command);
        batch
    }

    /// Adds a command that is sent again.
    pub fn append(&mut self, command: &Requeued) {
        self.bytes.extend_from_slice(&command.bytes);
        self.end_command(command.slot);
    }

    /// Marks the end of the command that was just appended to `bytes`.
    pub fn end_command(&mut self, slot: Slot) {
        let end = self.bytes.len();
        self.commands.push(BatchEntry { slot, end });
    }

    /// Number of commands, ASKING not counted.
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Commands the node executed.
    pub fn executed(&self) -> usize {
        self.answered_commands().saturating_sub(self.requeued.len())
    }

    /// Whether every reply is in.
    pub fn is_answered(&self) -> bool {
        self.answered_commands() == self.commands()
    }

    /// Takes the next replies of this batch, all of which are "+OK". Returns how many of `count` belong to it.
    pub fn take_ok(&mut self, count: usize) -> usize {
        let taken = count.min(self.expected_replies() - self.replies);
        self.replies += taken;
        taken
    }

    /// Takes the next reply of this batch, which is an error.
    pub fn take_error(&mut self, action: ReplyAction) {
        // An error in answer to ASKING is followed by one in answer to the command itself, which is the one that counts.
        let answers_asking = self.asking && self.replies.is_multiple_of(2);
        let command = self.answered_commands();
        self.replies += 1;
        if !answers_asking {
            self.requeue(command, action);
        }
    }

    /// Requeues every command without an answer: the connection is lost.
    pub fn requeue_rest(&mut self, action: &ReplyAction) {
        for command in self.answered_commands()..self.commands() {
            self.requeue(command, action.clone());
        }
        self.replies = self.expected_replies();
    }

    fn answered_commands(&self) -> usize {
        if self.asking {
            self.replies / 2
        } else {
            self.replies
        }
    }

    fn expected_replies(&self) -> usize {
        if self.asking {
            self.commands.len() * 2
        } else {
            self.commands.len()
        }
    }

    fn requeue(&mut self, index: usize, action: ReplyAction) {
        let start = match index.checked_sub(1) {
            None => 0,
            Some(previous) => self.commands.get(previous).map_or(0, |c| c.end),
        };
        let start = if self.asking {
            start + ASKING.len()
        } else {
            start
        };
        let Some(BatchEntry { slot, end }) = self.commands.get(index).copied() else {
            return;
        };
        let bytes = self.bytes.get(start..end).unwrap_or_default().to_vec();
        self.requeued.push(Requeued {
            slot,
            bytes,
            block: self.block,
            action,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::reply_action::RetryReason;

    fn batch(commands: &[&[u8]]) -> CommandBatch {
        let mut batch = CommandBatch::default();
        batch.reset(7);
        for command in commands {
            batch.bytes.extend_from_slice(command);
            batch.end_command(Slot::of_key(command));
        }
        batch
    }

    #[test]
    fn every_reply_finds_its_command() {
        let mut batch = batch(&[b"one", b"two", b"three"]);
        assert_eq!(batch.take_ok(1), 1);
        batch.take_error(ReplyAction::Wait(RetryReason::TryAgain));
        assert!(!batch.is_answered());
        assert_eq!(batch.take_ok(5), 1, "only one reply is left to take");
        assert!(batch.is_answered());
        assert_eq!(batch.executed(), 2);
        assert_eq!(batch.requeued.len(), 1);
        assert_eq!(batch.requeued[0].bytes, b"two");
        assert_eq!(batch.requeued[0].block, 7);
    }

    #[test]
    fn a_command_behind_asking_has_two_replies() {
        let requeued = Requeued {
            slot: Slot::of_key(b"key"),
            bytes: b"command".to_vec(),
            block: 3,
            action: ReplyAction::Wait(RetryReason::TryAgain),
        };
        let mut batch = CommandBatch::of_requeued(&requeued, true);
        assert!(batch.bytes.starts_with(ASKING));
        assert_eq!(batch.commands(), 1);
        assert_eq!(batch.take_ok(1), 1);
        assert!(!batch.is_answered());
        batch.take_error(ReplyAction::Wait(RetryReason::Loading));
        assert!(batch.is_answered());
        assert_eq!(batch.executed(), 0);
        assert_eq!(batch.requeued[0].bytes, b"command");
        assert_eq!(batch.requeued[0].block, 3);
    }

    #[test]
    fn an_error_in_answer_to_asking_counts_once() {
        let requeued = Requeued {
            slot: Slot::of_key(b"key"),
            bytes: b"command".to_vec(),
            block: 3,
            action: ReplyAction::Wait(RetryReason::TryAgain),
        };
        let mut batch = CommandBatch::of_requeued(&requeued, true);
        batch.take_error(ReplyAction::Wait(RetryReason::Loading));
        batch.take_error(ReplyAction::Wait(RetryReason::Loading));
        assert!(batch.is_answered());
        assert_eq!(batch.requeued.len(), 1);
    }

    #[test]
    fn a_lost_connection_requeues_what_has_no_answer() {
        let mut batch = batch(&[b"one", b"two", b"three"]);
        batch.take_ok(1);
        batch.requeue_rest(&ReplyAction::Wait(RetryReason::Disconnected));
        assert!(batch.is_answered());
        assert_eq!(batch.executed(), 1);
        let rest: Vec<_> = batch.requeued.iter().map(|b| b.bytes.as_slice()).collect();
        assert_eq!(rest, [b"two".as_slice(), b"three"]);
    }

    #[test]
    fn a_reset_batch_holds_nothing() {
        let mut batch = batch(&[b"one"]);
        batch.take_error(ReplyAction::Wait(RetryReason::TryAgain));
        batch.reset(9);
        assert_eq!((batch.block, batch.commands(), batch.executed()), (9, 0, 0));
        assert!(batch.bytes.is_empty() && batch.requeued.is_empty());
    }
}
