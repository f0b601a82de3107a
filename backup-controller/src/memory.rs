//! What the planner keeps between two passes over a backup. All of it may be lost: another leader begins with nothing, and
//! waits or tries a little longer.

use crate::plan::{Awaited, Observed, Published, Step};
use common::kubernetes::{
    background::{Background, Remembered},
    leases::Operation,
};
use crds::{BackupShardState, RedisBackup};
use kube::ResourceExt;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an operation lease that was renewed needs no second look.
const LEASE_IS_FRESH: Duration = Duration::from_secs(10);
/// How often the progress of a backup is written.
pub const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// What the planner keeps, by uid of the backup. Cheap to clone.
#[derive(Clone, Default)]
pub struct Memory {
    backups: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Default)]
struct Entry {
    namespace: String,
    name: String,
    waiting: Option<(Awaited, Instant)>,
    probing: Remembered<()>,
    failed: HashMap<(i32, i32), Instant>,
    publishing: Remembered<Published>,
    deletion: Remembered<()>,
    leased: Option<Instant>,
    progress_written: Option<Instant>,
}

impl Memory {
    /// What is known at the beginning of a pass.
    pub fn recall(&self, backup: &RedisBackup, now: Instant) -> Observed {
        let mut backups = self.lock();
        let entry = backups.entry(key(backup)).or_default();
        entry.namespace = backup.namespace().unwrap_or_default();
        entry.name = backup.name_any();
        let units = backup
            .status
            .as_ref()
            .map_or(&[][..], |status| status.shards.as_slice());
        let failed: Vec<_> = units
            .iter()
            .filter(|unit| unit.state == BackupShardState::Failed)
            .map(|unit| (unit.index, unit.attempt))
            .collect();
        entry.failed.retain(|known, _| failed.contains(known));
        let failed_for = failed.into_iter().map(|unit| {
            let since = *entry.failed.entry(unit).or_insert(now);
            (unit.0, now.duration_since(since))
        });
        Observed {
            failed_for: failed_for.collect(),
            waiting: entry
                .waiting
                .map(|(on, since)| (on, now.duration_since(since))),
            storage: entry.probing.recall(now),
            publishing: entry.publishing.recall(now),
            deletion: entry.deletion.recall(now),
            operation: entry
                .leased
                .filter(|at| now.duration_since(*at) < LEASE_IS_FRESH)
                .map(|_| Operation::Held),
            ..Observed::default()
        }
    }

    /// Remembers what is waited for and since when. A step forward ends the wait, and so does the wait for something else;
    /// another reason or another try does not.
    pub fn note(&self, backup: &RedisBackup, step: &Step, now: Instant) {
        let mut backups = self.lock();
        let entry = backups.entry(key(backup)).or_default();
        match step {
            Step::Wait { on, .. } => {
                entry.waiting = entry.waiting.filter(|(known, _)| known == on);
                entry.waiting.get_or_insert((*on, now));
            }
            Step::Publish | Step::DeleteArtifacts | Step::Probe(_) | Step::Ask(_) => {}
            Step::AddFinalizer
            | Step::RemoveFinalizer
            | Step::Abandon(_)
            | Step::Accept(_)
            | Step::List { .. }
            | Step::Free(_)
            | Step::ConfirmSlots
            | Step::Succeed(_)
            | Step::Fail { .. }
            | Step::Watch
            | Step::Rest => entry.waiting = None,
        }
    }

    /// The operation lease was taken or renewed, or given back.
    pub fn leased(&self, backup: &RedisBackup, at: Option<Instant>) {
        self.lock().entry(key(backup)).or_default().leased = at;
    }

    /// The look at the storage has begun or ended.
    pub fn probing(&self, uid: &str, state: Background<()>) {
        let mut backups = self.lock();
        let entry = backups.entry(uid.to_owned()).or_default();
        entry.probing.set(state, Instant::now());
    }

    /// Publishing has begun or ended.
    pub fn publishing(&self, uid: &str, state: Background<Published>) {
        let mut backups = self.lock();
        let entry = backups.entry(uid.to_owned()).or_default();
        entry.publishing.set(state, Instant::now());
    }

    /// The deletion has begun or ended.
    pub fn deletion(&self, uid: &str, state: Background<()>) {
        let mut backups = self.lock();
        let entry = backups.entry(uid.to_owned()).or_default();
        entry.deletion.set(state, Instant::now());
    }

    /// Whether progress may be written now; if not, when.
    pub fn may_write_progress(&self, backup: &RedisBackup, now: Instant) -> Result<(), Duration> {
        let mut backups = self.lock();
        let entry = backups.entry(key(backup)).or_default();
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

    /// The backup has ended.
    pub fn done(&self, backup: &RedisBackup) {
        self.lock().remove(&key(backup));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.backups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(backup: &RedisBackup) -> String {
    backup.uid().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crds::RedisBackupSpec;

    fn backup() -> RedisBackup {
        let mut backup = RedisBackup::new("b", RedisBackupSpec::default());
        backup.metadata.uid = Some("u".into());
        backup
    }

    fn wait(on: Awaited, reason: &'static str) -> Step {
        Step::Wait {
            on,
            reason,
            message: String::new(),
        }
    }

    #[test]
    fn a_wait_goes_on_until_a_step_forward() {
        let (memory, backup, start) = (Memory::default(), backup(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        memory.note(&backup, &wait(Awaited::Manifest, "A"), at(0));
        memory.note(&backup, &Step::Publish, at(4));
        memory.note(&backup, &wait(Awaited::Manifest, "B"), at(5));
        let seen = memory.recall(&backup, at(7));
        assert_eq!(seen.waited(Awaited::Manifest).as_secs(), 7);
        memory.note(&backup, &Step::Watch, at(10));
        assert_eq!(memory.recall(&backup, at(20)).waiting, None);
    }

    #[test]
    fn the_wait_for_something_else_begins_anew() {
        let (memory, backup, start) = (Memory::default(), backup(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        memory.note(&backup, &wait(Awaited::Cluster, "A"), at(0));
        memory.note(&backup, &wait(Awaited::Storage, "B"), at(300));
        let seen = memory.recall(&backup, at(310));
        assert_eq!(seen.waited(Awaited::Storage).as_secs(), 10);
        assert_eq!(seen.waited(Awaited::Cluster), Duration::ZERO);
    }
}
