//! What the leader remembers of each object between two reconciles. All of it may be lost: the next leader starts with nothing, and waits or
//! tries a little longer.

use super::{
    attempts::AttemptFacts,
    unit::{Stage, UnitKind},
};
use crate::kubernetes::leases::Operation;
use kube::ResourceExt;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long an operation Lease that was renewed needs no second look.
const LEASE_IS_FRESH: Duration = Duration::from_secs(10);
/// How often the progress of an object is written at most.
const PROGRESS_PERIOD: Duration = Duration::from_secs(2);

/// What a step means for the clock of what is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting<A> {
    /// It waits for this. The clock starts where it waited for something else.
    On(A),
    /// The step tries again: the clock runs on.
    Continues,
    /// The step is progress: the clock is reset.
    Ends,
}

/// What is remembered at the start of a reconcile.
#[derive(Debug)]
pub struct Recalled<A> {
    /// Without the members.
    pub attempts: AttemptFacts,
    /// What is waited for, and for how long.
    pub waiting: Option<(A, Duration)>,
    /// Set while the operation Lease was renewed so recently that it need not be asked for.
    pub operation: Option<Operation>,
}

/// What the leader remembers, by uid of the object. `A`: what can be waited for, `J`: records of jobs. Cheap to clone.
pub struct Memory<A, J> {
    entries: Arc<Mutex<HashMap<String, Entry<A, J>>>>,
}

struct Entry<A, J> {
    namespace: String,
    name: String,
    waiting: Option<(A, Instant)>,
    /// Index and attempt of failed units, and when each was first seen as failed.
    failed: HashMap<(i32, i32), Instant>,
    leased: Option<Instant>,
    progress_written: Option<Instant>,
    jobs: J,
}

impl<A, J> Clone for Memory<A, J> {
    fn clone(&self) -> Self {
        let entries = Arc::clone(&self.entries);
        Self { entries }
    }
}

impl<A, J> Default for Memory<A, J> {
    fn default() -> Self {
        let entries = Arc::default();
        Self { entries }
    }
}

impl<A: Copy + PartialEq, J: Default> Memory<A, J> {
    /// What is known of an object at the start of a reconcile.
    pub fn recall<U: UnitKind>(&self, object: &U::Object, now: Instant) -> Recalled<A> {
        let units = U::units(object);
        let failed = units.iter().filter(|unit| unit.stage == Stage::Failed);
        let failed: Vec<_> = failed.map(|unit| (unit.index, unit.attempt)).collect();
        self.entry(object, |entry| {
            entry.failed.retain(|known, _| failed.contains(known));
            let failed_for = failed.iter().map(|unit| {
                let since = *entry.failed.entry(*unit).or_insert(now);
                (unit.0, now.duration_since(since))
            });
            Recalled {
                attempts: AttemptFacts {
                    failed_for: failed_for.collect(),
                    members: None,
                },
                waiting: entry
                    .waiting
                    .map(|(on, since)| (on, now.duration_since(since))),
                operation: entry
                    .leased
                    .filter(|at| now.duration_since(*at) < LEASE_IS_FRESH)
                    .map(|_| Operation::Held),
            }
        })
    }

    /// Sets the clock of what is waited for.
    pub fn note<K: ResourceExt>(&self, object: &K, waiting: Waiting<A>, now: Instant) {
        self.entry(object, |entry| match waiting {
            Waiting::On(what) => {
                entry.waiting = entry.waiting.filter(|(known, _)| *known == what);
                entry.waiting.get_or_insert((what, now));
            }
            Waiting::Continues => {}
            Waiting::Ends => entry.waiting = None,
        });
    }

    /// The operation Lease was taken or renewed at this time; `None`: released.
    pub fn leased<K: ResourceExt>(&self, object: &K, at: Option<Instant>) {
        self.entry(object, |entry| entry.leased = at);
    }

    /// Reads or changes the records of the object's jobs.
    pub fn jobs<K: ResourceExt, T>(&self, object: &K, change: impl FnOnce(&mut J) -> T) -> T {
        self.entry(object, |entry| change(&mut entry.jobs))
    }

    /// Whether progress may be written now; if not, after how long.
    pub fn may_write_progress<K: ResourceExt>(
        &self,
        object: &K,
        now: Instant,
    ) -> Result<(), Duration> {
        self.entry(object, |entry| {
            let passed = entry.progress_written.map(|at| now.duration_since(at));
            match passed.and_then(|passed| PROGRESS_PERIOD.checked_sub(passed)) {
                Some(rest) if !rest.is_zero() => Err(rest),
                _ => {
                    entry.progress_written = Some(now);
                    Ok(())
                }
            }
        })
    }

    /// The object was deleted.
    pub fn deleted(&self, namespace: &str, name: &str) {
        let mut entries = self.lock();
        entries.retain(|_, entry| entry.namespace != namespace || entry.name != name);
    }

    /// The object needs no further reconciles.
    pub fn forget<K: ResourceExt>(&self, object: &K) {
        self.lock().remove(&uid(object));
    }

    fn entry<K: ResourceExt, T>(
        &self,
        object: &K,
        change: impl FnOnce(&mut Entry<A, J>) -> T,
    ) -> T {
        let mut entries = self.lock();
        let entry = entries.entry(uid(object)).or_insert_with(|| Entry {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
            waiting: None,
            failed: HashMap::new(),
            leased: None,
            progress_written: None,
            jobs: J::default(),
        });
        change(entry)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry<A, J>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn uid<K: ResourceExt>(object: &K) -> String {
    object.uid().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::tests::{Units, object};

    #[test]
    fn trying_again_keeps_the_clock_and_progress_resets_it() {
        let (memory, object) = (Memory::<_, ()>::default(), object(&[]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let waiting = |at| memory.recall::<Units>(&object, at).waiting;
        memory.note(&object, Waiting::On("A"), at(0));
        memory.note(&object, Waiting::Continues, at(4));
        memory.note(&object, Waiting::On("A"), at(5));
        assert_eq!(waiting(at(7)), Some(("A", Duration::from_secs(7))));
        memory.note(&object, Waiting::On("B"), at(8));
        assert_eq!(waiting(at(9)), Some(("B", Duration::from_secs(1))));
        memory.note(&object, Waiting::Ends, at(10));
        assert_eq!(waiting(at(20)), None);
    }

    #[test]
    fn the_clock_of_a_failed_unit_restarts_with_its_attempt() {
        let memory = Memory::<(), ()>::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let failed = |attempt| object(&[("a", attempt, "Failed")]);
        let failed_for = |attempt, now| memory.recall::<Units>(&failed(attempt), now);
        failed_for(1, at(0));
        let recalled = failed_for(1, at(3));
        assert_eq!(recalled.attempts.failed_for[&0], Duration::from_secs(3));
        let recalled = failed_for(2, at(9));
        assert_eq!(recalled.attempts.failed_for[&0], Duration::ZERO);
    }

    #[test]
    fn progress_is_written_every_two_seconds() {
        let (memory, object) = (Memory::<(), ()>::default(), object(&[]));
        let start = Instant::now();
        let may_write = |ms| memory.may_write_progress(&object, start + Duration::from_millis(ms));
        assert_eq!(may_write(0), Ok(()));
        assert_eq!(may_write(500), Err(Duration::from_millis(1500)));
        assert_eq!(may_write(2000), Ok(()));
    }
}
