//! The longest value that a replay takes: what RESTORE can carry, and less where the memory of the process is limited. Pure.

use super::command::LONGEST_ARGUMENT;
use std::fmt;

const MIB: usize = 1024 * 1024;
/// What the process needs beside its replays: caches of objects, clients, code.
const PROCESS: usize = 64 * MIB;
/// What a replay needs beside its longest value: blocks that were read ahead and commands in flight.
const REPLAY: usize = 64 * MIB;
/// How many times a value is held at the same time: as it is collected from its blocks, as a command, and as that is repeated.
const COPIES: usize = 3;
/// However small the memory, values that fit a block are taken.
const SMALLEST: usize = 4 * MIB;

/// The longest value that a replay takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueLimit {
    bytes: usize,
    /// The memory limit that it follows from, if not from RESTORE.
    memory: Option<usize>,
}

impl Default for ValueLimit {
    fn default() -> Self {
        Self {
            bytes: LONGEST_ARGUMENT,
            memory: None,
        }
    }
}

impl ValueLimit {
    /// The longest value with which so many replays fit into `memory` bytes at the same time; `None`: memory has no limit.
    pub fn within(memory: Option<usize>, replays: usize) -> Self {
        let Some(memory) = memory else {
            return Self::default();
        };
        let replays = replays.max(1);
        let left = memory.saturating_sub(PROCESS + replays.saturating_mul(REPLAY));
        let bytes = (left / COPIES / replays).max(SMALLEST);
        if bytes >= LONGEST_ARGUMENT {
            return Self::default();
        }
        Self {
            bytes,
            memory: Some(memory),
        }
    }

    /// In bytes.
    pub fn bytes(self) -> usize {
        self.bytes
    }
}

impl fmt::Display for ValueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let longest = self.bytes / MIB;
        match self.memory {
            None => write!(f, "{longest} MiB, the most that RESTORE can carry"),
            Some(memory) => write!(
                f,
                "{longest} MiB, the most that the restore-controller's memory limit of {} MiB allows; raise that limit or lower --streams",
                memory / MIB
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_replays_fit_into_the_memory_with_their_longest_values() {
        for memory in [512, 1024, 2048, 4096] {
            for replays in 1..=5 {
                let limit = ValueLimit::within(Some(memory * MIB), replays).bytes();
                let all = PROCESS + replays * (REPLAY + COPIES * limit);
                assert!(
                    all <= memory * MIB || limit == SMALLEST,
                    "{memory} {replays}"
                );
            }
        }
        assert_eq!(ValueLimit::within(Some(1024 * MIB), 3).bytes() / MIB, 85);
    }

    #[test]
    fn the_limit_of_restore_is_never_exceeded() {
        assert_eq!(ValueLimit::within(None, 3), ValueLimit::default());
        assert_eq!(
            ValueLimit::within(Some(64 * 1024 * MIB), 3),
            ValueLimit::default()
        );
        assert_eq!(ValueLimit::within(Some(0), 0).bytes(), SMALLEST);
    }
}
