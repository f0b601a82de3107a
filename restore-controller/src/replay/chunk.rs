//! Commands that travel together: one buffer, one write, one report back. Chunks go round in a circle between the replay
//! loop and the connections, so that nothing is allocated while a replay runs.

use super::verdict::Verdict;
use bytes::BytesMut;
use common::cluster::slots::Slot;

/// What a command that follows an ASK redirect is preceded by.
pub const ASKING: &[u8] = b"*1\r\n$6\r\nASKING\r\n";

/// Commands of one block for one node.
#[derive(Debug, Default)]
pub struct Chunk {
    /// The block in which the commands' records start.
    pub block: u64,
    /// The commands as they go over the wire.
    pub bytes: BytesMut,
    commands: Vec<Command>,
    /// Whether each command is preceded by ASKING, and so has two replies.
    asking: bool,
    replies: usize,
    /// Commands that the node did not execute.
    pub bounced: Vec<Bounced>,
}

#[derive(Clone, Copy, Debug)]
struct Command {
    slot: Slot,
    /// End of the command in the chunk's bytes.
    end: usize,
}

/// A command that was not executed, and what the node said.
#[derive(Debug)]
pub struct Bounced {
    /// The slot of its key.
    pub slot: Slot,
    /// The command without ASKING.
    pub bytes: Vec<u8>,
    /// The block in which its record starts.
    pub block: u64,
    /// Why it was not executed.
    pub verdict: Verdict,
}

impl Chunk {
    /// Empties the chunk for another use; its memory stays.
    pub fn reset(&mut self, block: u64) {
        self.block = block;
        self.bytes.clear();
        self.commands.clear();
        self.asking = false;
        self.replies = 0;
        self.bounced.clear();
    }

    /// A chunk of one command that is sent again.
    pub fn of_bounced(command: &Bounced, asking: bool) -> Self {
        let mut chunk = Self {
            block: command.block,
            asking,
            ..Self::default()
        };
        if asking {
            chunk.bytes.extend_from_slice(ASKING);
        }
        chunk.append(command);
        chunk
    }

    /// Adds a command that is sent again.
    pub fn append(&mut self, command: &Bounced) {
        self.bytes.extend_from_slice(&command.bytes);
        self.end_command(command.slot);
    }

    /// Marks the end of the command that was just appended to `bytes`.
    pub fn end_command(&mut self, slot: Slot) {
        let end = self.bytes.len();
        self.commands.push(Command { slot, end });
    }

    /// Number of commands, ASKING not counted.
    pub fn commands(&self) -> usize {
        self.commands.len()
    }

    /// Commands the node executed.
    pub fn executed(&self) -> usize {
        self.answered_commands().saturating_sub(self.bounced.len())
    }

    /// Whether every reply is in.
    pub fn is_answered(&self) -> bool {
        self.answered_commands() == self.commands()
    }

    /// Takes the next replies of this chunk, all of which are "+OK". Returns how many of `count` belong to it.
    pub fn take_ok(&mut self, count: usize) -> usize {
        let taken = count.min(self.expected_replies() - self.replies);
        self.replies += taken;
        taken
    }

    /// Takes the next reply of this chunk, which is an error.
    pub fn take_error(&mut self, verdict: Verdict) {
        // An error in answer to ASKING is followed by one in answer to the command itself, which is the one that counts.
        let answers_asking = self.asking && self.replies.is_multiple_of(2);
        let command = self.answered_commands();
        self.replies += 1;
        if !answers_asking {
            self.bounce(command, verdict);
        }
    }

    /// Turns every command without an answer into a bounced one: the connection is lost.
    pub fn bounce_rest(&mut self, verdict: &Verdict) {
        for command in self.answered_commands()..self.commands() {
            self.bounce(command, verdict.clone());
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

    fn bounce(&mut self, index: usize, verdict: Verdict) {
        let start = match index.checked_sub(1) {
            None => 0,
            Some(previous) => self.commands.get(previous).map_or(0, |c| c.end),
        };
        let start = if self.asking {
            start + ASKING.len()
        } else {
            start
        };
        let Some(Command { slot, end }) = self.commands.get(index).copied() else {
            return;
        };
        let bytes = self.bytes.get(start..end).unwrap_or_default().to_vec();
        self.bounced.push(Bounced {
            slot,
            bytes,
            block: self.block,
            verdict,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::verdict::Pause;

    fn chunk(commands: &[&[u8]]) -> Chunk {
        let mut chunk = Chunk::default();
        chunk.reset(7);
        for command in commands {
            chunk.bytes.extend_from_slice(command);
            chunk.end_command(Slot::of_key(command));
        }
        chunk
    }

    #[test]
    fn every_reply_finds_its_command() {
        let mut chunk = chunk(&[b"one", b"two", b"three"]);
        assert_eq!(chunk.take_ok(1), 1);
        chunk.take_error(Verdict::Wait(Pause::TryAgain));
        assert!(!chunk.is_answered());
        assert_eq!(chunk.take_ok(5), 1, "only one reply is left to take");
        assert!(chunk.is_answered());
        assert_eq!(chunk.executed(), 2);
        assert_eq!(chunk.bounced.len(), 1);
        assert_eq!(chunk.bounced[0].bytes, b"two");
        assert_eq!(chunk.bounced[0].block, 7);
    }

    #[test]
    fn a_command_behind_asking_has_two_replies() {
        let bounced = Bounced {
            slot: Slot::of_key(b"key"),
            bytes: b"command".to_vec(),
            block: 3,
            verdict: Verdict::Wait(Pause::TryAgain),
        };
        let mut chunk = Chunk::of_bounced(&bounced, true);
        assert!(chunk.bytes.starts_with(ASKING));
        assert_eq!(chunk.commands(), 1);
        assert_eq!(chunk.take_ok(1), 1);
        assert!(!chunk.is_answered());
        chunk.take_error(Verdict::Wait(Pause::Loading));
        assert!(chunk.is_answered());
        assert_eq!(chunk.executed(), 0);
        assert_eq!(chunk.bounced[0].bytes, b"command");
        assert_eq!(chunk.bounced[0].block, 3);
    }

    #[test]
    fn an_error_in_answer_to_asking_counts_once() {
        let bounced = Bounced {
            slot: Slot::of_key(b"key"),
            bytes: b"command".to_vec(),
            block: 3,
            verdict: Verdict::Wait(Pause::TryAgain),
        };
        let mut chunk = Chunk::of_bounced(&bounced, true);
        chunk.take_error(Verdict::Wait(Pause::Loading));
        chunk.take_error(Verdict::Wait(Pause::Loading));
        assert!(chunk.is_answered());
        assert_eq!(chunk.bounced.len(), 1);
    }

    #[test]
    fn a_lost_connection_bounces_what_has_no_answer() {
        let mut chunk = chunk(&[b"one", b"two", b"three"]);
        chunk.take_ok(1);
        chunk.bounce_rest(&Verdict::Wait(Pause::Disconnected));
        assert!(chunk.is_answered());
        assert_eq!(chunk.executed(), 1);
        let rest: Vec<_> = chunk.bounced.iter().map(|b| b.bytes.as_slice()).collect();
        assert_eq!(rest, [b"two".as_slice(), b"three"]);
    }

    #[test]
    fn a_used_chunk_is_as_good_as_new() {
        let mut chunk = chunk(&[b"one"]);
        chunk.take_error(Verdict::Wait(Pause::TryAgain));
        chunk.reset(9);
        assert_eq!((chunk.block, chunk.commands(), chunk.executed()), (9, 0, 0));
        assert!(chunk.bytes.is_empty() && chunk.bounced.is_empty());
    }
}
