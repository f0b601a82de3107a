//! What the planner keeps between two passes over a restore. All of it may be lost: another leader begins with nothing, and
//! reads, waits or tries a little longer.

use crate::plan::{Examined, Observed, Step, Verified};
use common::kubernetes::{
    background::{Background, Remembered},
    leases::Operation,
};
use crds::{RedisRestore, RestoreUnitState};
use kube::ResourceExt;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an operation lease that was renewed needs no second look.
const LEASE_IS_FRESH: Duration = Duration::from_secs(10);
/// How often the progress of a restore is written.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// What the planner keeps, by uid of the restore. Cheap to clone.
#[derive(Clone, Default)]
pub struct Memory {
    restores: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Default)]
struct Entry {
    namespace: String,
    name: String,
    waiting: Option<(&'static str, Instant)>,
    failed: HashMap<(i32, i32), Instant>,
    source: Remembered<Arc<Examined>>,
    verification: Remembered<Verified>,
    leased: Option<Instant>,
    progress_written: Option<Instant>,
}

impl Memory {
    /// What is known at the beginning of a pass.
    pub fn recall(&self, restore: &RedisRestore, now: Instant) -> Observed {
        let mut restores = self.lock();
        let entry = restores.entry(key(restore)).or_default();
        entry.namespace = restore.namespace().unwrap_or_default();
        entry.name = restore.name_any();
        let units = restore.status.iter().flat_map(|status| &status.units);
        let failed: Vec<_> = units
            .filter(|unit| unit.state == RestoreUnitState::Failed)
            .map(|unit| (unit.index, unit.attempt))
            .collect();
        entry.failed.retain(|known, _| failed.contains(known));
        let failed_for = failed.into_iter().map(|unit| {
            let since = *entry.failed.entry(unit).or_insert(now);
            (unit.0, now.duration_since(since))
        });
        Observed {
            failed_for: failed_for.collect(),
            waiting_for: entry
                .waiting
                .map(|(reason, since)| (reason, now.duration_since(since))),
            source: entry.source.recall(now),
            verification: entry.verification.recall(now),
            operation: entry
                .leased
                .filter(|at| now.duration_since(*at) < LEASE_IS_FRESH)
                .map(|_| Operation::Held),
            ..Observed::default()
        }
    }

    /// Remembers since when the same thing is waited for. Working on something ends the wait; trying again does not.
    pub fn note(&self, restore: &RedisRestore, step: &Step, now: Instant) {
        let mut restores = self.lock();
        let entry = restores.entry(key(restore)).or_default();
        match step {
            Step::Wait { reason, .. } => {
                if entry.waiting.is_none_or(|(known, _)| known != *reason) {
                    entry.waiting = Some((reason, now));
                }
            }
            Step::Ask(_) | Step::Examine | Step::Verify => {}
            Step::Accept(_)
            | Step::CreateCluster
            | Step::List { .. }
            | Step::Free(_)
            | Step::Succeed(_)
            | Step::Fail(_)
            | Step::Watch
            | Step::Rest => entry.waiting = None,
        }
    }

    /// The operation lease was taken or renewed, or given back.
    pub fn leased(&self, restore: &RedisRestore, at: Option<Instant>) {
        self.lock().entry(key(restore)).or_default().leased = at;
    }

    /// Reading the source has begun or ended.
    pub fn source(&self, uid: &str, state: Background<Arc<Examined>>) {
        let mut restores = self.lock();
        let entry = restores.entry(uid.to_owned()).or_default();
        entry.source.set(state, Instant::now());
    }

    /// Counting has begun or ended.
    pub fn verification(&self, uid: &str, state: Background<Verified>) {
        let mut restores = self.lock();
        let entry = restores.entry(uid.to_owned()).or_default();
        entry.verification.set(state, Instant::now());
    }

    /// Whether progress may be written now; if not, when.
    pub fn may_write_progress(&self, restore: &RedisRestore, now: Instant) -> Result<(), Duration> {
        let mut restores = self.lock();
        let entry = restores.entry(key(restore)).or_default();
        let passed = entry.progress_written.map(|at| now.duration_since(at));
        match passed.and_then(|passed| PROGRESS_PERIOD.checked_sub(passed)) {
            Some(rest) if !rest.is_zero() => Err(rest),
            _ => {
                entry.progress_written = Some(now);
                Ok(())
            }
        }
    }

    /// The object is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        self.lock()
            .retain(|_, entry| entry.namespace != namespace || entry.name != name);
    }

    /// The restore has ended.
    pub fn done(&self, restore: &RedisRestore) {
        self.lock().remove(&key(restore));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.restores.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(restore: &RedisRestore) -> String {
    restore.uid().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RedisRestoreSpec;

    fn restore() -> RedisRestore {
        let mut restore = RedisRestore::new("r", RedisRestoreSpec::default());
        restore.metadata.uid = Some("u".into());
        restore
    }

    fn wait(reason: &'static str) -> Step {
        let message = String::new();
        Step::Wait { reason, message }
    }

    #[test]
    fn the_same_wait_goes_on_and_another_begins_anew() {
        let (memory, restore, start) = (Memory::default(), restore(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        memory.note(&restore, &wait("A"), at(0));
        memory.note(&restore, &wait("A"), at(5));
        memory.note(&restore, &Step::Examine, at(6));
        let waited = |at| memory.recall(&restore, at).waiting_for;
        assert_eq!(waited(at(7)), Some(("A", Duration::from_secs(7))));
        memory.note(&restore, &wait("B"), at(8));
        assert_eq!(waited(at(9)), Some(("B", Duration::from_secs(1))));
        memory.note(&restore, &Step::Watch, at(10));
        assert_eq!(waited(at(20)), None);
    }
}
