//! Which blocks are done: a block is acknowledged when every record that starts in it is. Pure accounting.

use std::collections::VecDeque;

/// How far a unit is: where another attempt goes on, and what was counted in the blocks before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The first block whose records have not all been acknowledged.
    pub block: u64,
    /// Keys written.
    pub keys: u64,
    /// Keys left out because they had expired.
    pub expired: u64,
    /// Keys left out because their slot is not the shard's: leftovers of an aborted slot move.
    pub foreign: u64,
}

/// The blocks between the first that is not acknowledged and the one being read.
#[derive(Debug)]
pub struct ProgressTracker {
    done: Progress,
    open: VecDeque<BlockTally>,
}

#[derive(Debug, Default)]
struct BlockTally {
    sent: u64,
    acknowledged: u64,
    expired: u64,
    foreign: u64,
    /// Every record that starts in the block has been seen.
    complete: bool,
}

impl ProgressTracker {
    /// Starts where an earlier attempt left off.
    pub fn resume(from: Progress) -> Self {
        Self {
            done: from,
            open: VecDeque::new(),
        }
    }

    /// What may be reported.
    pub fn progress(&self) -> Progress {
        self.done
    }

    /// A key of `block` goes to a node.
    pub fn sent(&mut self, block: u64) {
        if let Some(tally) = self.tally(block) {
            tally.sent += 1;
        }
    }

    /// A key of `block` had expired.
    pub fn expired(&mut self, block: u64) {
        if let Some(tally) = self.tally(block) {
            tally.expired += 1;
        }
    }

    /// A key of `block` belongs to another shard.
    pub fn foreign(&mut self, block: u64) {
        if let Some(tally) = self.tally(block) {
            tally.foreign += 1;
        }
    }

    /// Nodes have executed `count` commands of `block`. True if the progress has changed.
    pub fn acknowledged(&mut self, block: u64, count: u64) -> bool {
        if let Some(tally) = self.tally(block) {
            tally.acknowledged += count;
        }
        self.advance()
    }

    /// No more records start before `block`. True if the progress has changed.
    pub fn complete_before(&mut self, block: u64) -> bool {
        let Some(count) = block
            .checked_sub(self.done.block)
            .filter(|count| *count > 0)
        else {
            return false;
        };
        let _ = self.tally(block - 1);
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        for tally in self.open.iter_mut().take(count) {
            tally.complete = true;
        }
        self.advance()
    }

    /// Commands sent and not acknowledged.
    pub fn outstanding(&self) -> u64 {
        let of = |tally: &BlockTally| tally.sent.saturating_sub(tally.acknowledged);
        self.open.iter().map(of).sum()
    }

    fn tally(&mut self, block: u64) -> Option<&mut BlockTally> {
        let index = usize::try_from(block.checked_sub(self.done.block)?).ok()?;
        while self.open.len() <= index {
            self.open.push_back(BlockTally::default());
        }
        self.open.get_mut(index)
    }

    fn advance(&mut self) -> bool {
        let before = self.done.block;
        while let Some(tally) = self
            .open
            .pop_front_if(|tally| tally.complete && tally.acknowledged >= tally.sent)
        {
            self.done.block += 1;
            self.done.keys += tally.sent;
            self.done.expired += tally.expired;
            self.done.foreign += tally.foreign;
        }
        self.done.block != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_is_done_when_its_last_record_is_acknowledged() {
        let mut tracker = ProgressTracker::resume(Progress::default());
        tracker.sent(0);
        tracker.sent(0);
        tracker.expired(0);
        assert!(!tracker.complete_before(1));
        assert!(!tracker.acknowledged(0, 1));
        assert_eq!(tracker.progress(), Progress::default());
        assert!(tracker.acknowledged(0, 1));
        let done = Progress {
            block: 1,
            keys: 2,
            expired: 1,
            foreign: 0,
        };
        assert_eq!(tracker.progress(), done);
    }

    #[test]
    fn a_block_inside_one_record_is_done_with_its_predecessor() {
        let mut tracker = ProgressTracker::resume(Progress::default());
        tracker.sent(0);
        assert!(!tracker.complete_before(3));
        assert!(tracker.acknowledged(0, 1));
        assert_eq!(tracker.progress().block, 3);
    }

    #[test]
    fn a_resumed_unit_counts_on() {
        let from = Progress {
            block: 5,
            keys: 100,
            expired: 2,
            foreign: 1,
        };
        let mut tracker = ProgressTracker::resume(from);
        tracker.sent(5);
        tracker.foreign(5);
        tracker.acknowledged(5, 1);
        tracker.complete_before(6);
        let done = Progress {
            block: 6,
            keys: 101,
            expired: 2,
            foreign: 2,
        };
        assert_eq!(tracker.progress(), done);
    }

    proptest! {
        /// Whatever the order of acknowledgements, nothing is reported that a record without an answer could still undo,
        /// and everything is reported in the end.
        #[test]
        fn progress_never_runs_ahead(
            sizes in prop::collection::vec(0_u64..20, 1..8),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..200),
        ) {
            let mut tracker = ProgressTracker::resume(Progress::default());
            let mut waiting: Vec<u64> = Vec::new();
            for (block, size) in (0_u64..).zip(&sizes) {
                for _ in 0..*size {
                    tracker.sent(block);
                    waiting.push(block);
                }
                tracker.complete_before(block + 1);
            }
            for pick in order {
                if waiting.is_empty() {
                    break;
                }
                let block = waiting.swap_remove(pick.index(waiting.len()));
                tracker.acknowledged(block, 1);
                let first = waiting.iter().copied().min().unwrap_or(sizes.len() as u64);
                prop_assert_eq!(tracker.progress().block, first.max(tracker.progress().block));
                prop_assert!(tracker.progress().block <= first);
            }
            prop_assert_eq!(tracker.outstanding(), waiting.len() as u64);
            for block in waiting {
                tracker.acknowledged(block, 1);
            }
            prop_assert_eq!(tracker.progress().block, sizes.len() as u64);
            prop_assert_eq!(tracker.progress().keys, sizes.iter().sum::<u64>());
        }
    }
}
