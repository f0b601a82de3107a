//! The units of one object that this replica holds: what runs, what has ended, and which reports the API server has acknowledged.

use super::{Claim, ClaimPath, UnitReport, distribution::OwnUnits};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How the work on a unit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<D> {
    /// All of it is done.
    Done(D),
    /// It failed, with a sentence.
    Failed(String),
    /// This replica shuts down: another one is to take the unit in the same attempt.
    Released,
    /// The unit needs no further work: the object has ended or the claim was lost.
    Stopped,
}

/// The work on one unit, as far as its reports go.
pub trait Work: Send + 'static {
    /// What the work reports when all of it is done.
    type Done: Send;

    /// The fields to report now: how far it is, and how it ended if it has.
    fn fields(&self, end: Option<&End<Self::Done>>) -> Map<String, Value>;
}

/// The units of one object that this replica holds.
pub struct HeldUnits<W: Work> {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    array: &'static str,
    state: Mutex<State<W>>,
    changed: Notify,
}

struct State<W: Work> {
    units: BTreeMap<usize, HeldUnit<W>>,
    ended: BTreeSet<(usize, i32)>,
    /// Whether a reporter runs. Changed under the same lock as the units, so that none is left without.
    reporting: bool,
}

struct HeldUnit<W: Work> {
    attempt: i32,
    work: W,
    cancel: CancellationToken,
    /// It is not released to another replica.
    stopped: bool,
    end: Option<End<W::Done>>,
    acknowledged: Map<String, Value>,
}

impl<W: Work> HeldUnit<W> {
    fn fields(&self) -> Map<String, Value> {
        self.work.fields(self.end.as_ref())
    }

    fn stop(&mut self) {
        self.stopped = true;
        self.cancel.cancel();
    }
}

impl<W: Work> HeldUnits<W> {
    /// No unit is held yet. `array`: JSON pointer of the units.
    pub fn new(array: &'static str, namespace: String, name: String) -> Self {
        Self {
            namespace,
            name,
            array,
            state: Mutex::new(State {
                units: BTreeMap::new(),
                ended: BTreeSet::new(),
                reporting: false,
            }),
            changed: Notify::new(),
        }
    }

    /// What runs and what has ended, for [`super::distribution::actions`].
    pub fn own(&self) -> OwnUnits {
        let state = self.lock();
        let running = state.units.iter().map(|(at, unit)| (*at, unit.attempt));
        OwnUnits {
            running: running.collect(),
            ended: state.ended.clone(),
        }
    }

    /// Adds a unit; `cancel` stops its work. Whether a reporter has to be started.
    pub fn start(&self, position: usize, attempt: i32, work: W, cancel: CancellationToken) -> bool {
        let unit = HeldUnit {
            attempt,
            work,
            cancel,
            stopped: false,
            end: None,
            acknowledged: Map::new(),
        };
        let mut state = self.lock();
        state.units.insert(position, unit);
        self.report_now();
        !std::mem::replace(&mut state.reporting, true)
    }

    /// The unit has ended: it is reported immediately. Only the first end counts.
    pub fn finish(&self, position: usize, attempt: i32, end: End<W::Done>) {
        let mut state = self.lock();
        if let Some(unit) = state.units.get_mut(&position)
            && unit.attempt == attempt
            && unit.end.is_none()
        {
            let stopped = unit.stopped && matches!(end, End::Released);
            unit.end = Some(if stopped { End::Stopped } else { end });
        }
        drop(state);
        self.report_now();
    }

    /// Asks for a report without waiting for the period to pass.
    pub fn report_now(&self) {
        self.changed.notify_one();
    }

    /// Waits until a report is asked for.
    pub async fn report_asked(&self) {
        self.changed.notified().await;
    }

    /// Stops the work on a unit for good.
    pub fn stop(&self, position: usize) {
        if let Some(unit) = self.lock().units.get_mut(&position) {
            unit.stop();
        }
    }

    /// Stops the work on all units for good.
    pub fn stop_all(&self) {
        self.lock().units.values_mut().for_each(HeldUnit::stop);
    }

    /// Reports that the API server has not acknowledged yet, in the name of `me`.
    pub fn unacknowledged(&self, me: &str) -> Vec<UnitReport> {
        let state = self.lock();
        let reports = state.units.iter().map(|(index, unit)| {
            let claim = Claim {
                path: ClaimPath {
                    array: self.array,
                    index: *index,
                },
                worker: me.to_owned(),
                attempt: unit.attempt,
            };
            let fields = unit.fields();
            (unit, UnitReport { claim, fields })
        });
        reports
            .filter(|(unit, report)| unit.acknowledged != report.fields)
            .map(|(_, report)| report)
            .collect()
    }

    /// The API server has acknowledged these reports, except those of units that are lost: they stop.
    pub fn acknowledge(&self, reports: &[UnitReport], lost: &[usize]) {
        let mut state = self.lock();
        for report in reports {
            let position = report.claim.path.index;
            let Some(unit) = state.units.get_mut(&position) else {
                continue;
            };
            let is_lost = lost.contains(&position);
            unit.acknowledged.clone_from(&report.fields);
            // A unit that ended after the report was made needs one more.
            let ended = unit.end.is_some() && unit.fields() == report.fields;
            if is_lost {
                unit.stop();
            }
            if is_lost || ended {
                let attempt = unit.attempt;
                state.units.remove(&position);
                state.ended.insert((position, attempt));
            }
        }
    }

    /// Whether every end is acknowledged; then the reporter ends.
    pub fn is_reported(&self) -> bool {
        let mut state = self.lock();
        state.reporting = !state.units.is_empty();
        !state.reporting
    }

    /// Whether no unit is held.
    pub fn is_idle(&self) -> bool {
        self.lock().units.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Counting(Arc<AtomicU64>);

    impl Work for Counting {
        type Done = ();

        fn fields(&self, end: Option<&End<()>>) -> Map<String, Value> {
            let mut fields = Map::new();
            fields.insert("count".into(), json!(self.0.load(Ordering::Relaxed)));
            fields.insert("end".into(), json!(end.map(|end| format!("{end:?}"))));
            fields
        }
    }

    fn held() -> (HeldUnits<Counting>, Arc<AtomicU64>, CancellationToken) {
        let held = HeldUnits::new("/status/units", "shop".into(), "now".into());
        let (count, cancel) = (Arc::default(), CancellationToken::new());
        assert!(held.start(0, 1, Counting(Arc::clone(&count)), cancel.clone()));
        (held, count, cancel)
    }

    #[test]
    fn only_changes_are_reported_and_the_end_comes_last() {
        let (held, count, _) = held();
        let first = held.unacknowledged("me");
        assert_eq!(first.len(), 1);
        held.acknowledge(&first, &[]);
        assert!(held.unacknowledged("me").is_empty());
        count.store(1, Ordering::Relaxed);
        let second = held.unacknowledged("me");
        held.finish(0, 1, End::Done(()));
        held.acknowledge(&second, &[]);
        assert!(!held.is_reported(), "the end is not reported yet");
        held.acknowledge(&held.unacknowledged("me"), &[]);
        assert!(held.is_reported() && held.is_idle());
        assert_eq!(held.own().ended, BTreeSet::from([(0, 1)]));
    }

    #[test]
    fn a_lost_unit_is_stopped_and_forgotten() {
        let (held, _, cancel) = held();
        held.acknowledge(&held.unacknowledged("me"), &[0]);
        assert!(cancel.is_cancelled() && held.is_idle());
    }

    #[test]
    fn a_stopped_unit_is_not_released() {
        let (held, _, _) = held();
        held.stop(0);
        held.finish(0, 1, End::Released);
        let fields = &held.unacknowledged("me")[0].fields;
        assert_eq!(fields.get("end"), Some(&json!("Stopped")));
    }

    #[test]
    fn an_object_has_one_reporter() {
        let (held, count, cancel) = held();
        assert!(!held.start(1, 1, Counting(count), cancel));
    }
}
