//! What every controller of divided work counts: ended units and ended objects.

use crate::runtime::metrics::Metrics;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};
use std::time::Duration;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndLabels {
    outcome: &'static str,
    reason: &'static str,
}

/// Names and descriptions of the metrics.
#[derive(Clone, Copy, Debug)]
pub struct WorkNames {
    /// Ended attempts of units.
    pub units: [&'static str; 2],
    /// Seconds that a unit took which is done.
    pub unit_duration: [&'static str; 2],
    /// Ended objects.
    pub objects: [&'static str; 2],
    /// Seconds that an object took which succeeded.
    pub object_duration: [&'static str; 2],
}

/// Counters of ended units and objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkMetrics {
    units: Family<EndLabels, Counter>,
    unit_duration: Histogram,
    objects: Family<EndLabels, Counter>,
    object_duration: Histogram,
}

fn durations() -> Histogram {
    Histogram::new([1.0, 5.0, 20.0, 60.0, 300.0, 1200.0, 3600.0, 14400.0])
}

impl WorkMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics, names: WorkNames) -> Self {
        let own = Self {
            units: Family::default(),
            unit_duration: durations(),
            objects: Family::default(),
            object_duration: durations(),
        };
        metrics.register(|r| {
            let [name, help] = names.units;
            r.register(name, help, own.units.clone());
            let [name, help] = names.unit_duration;
            r.register(name, help, own.unit_duration.clone());
            let [name, help] = names.objects;
            r.register(name, help, own.objects.clone());
            let [name, help] = names.object_duration;
            r.register(name, help, own.object_duration.clone());
        });
        own
    }

    /// A unit is done.
    pub fn unit_done(&self, (outcome, reason): (&'static str, &'static str), took: Duration) {
        self.unit_duration.observe(took.as_secs_f64());
        self.unit_ended(outcome, reason);
    }

    /// An attempt of a unit has ended.
    pub fn unit_ended(&self, outcome: &'static str, reason: &'static str) {
        let labels = EndLabels { outcome, reason };
        self.units.get_or_create(&labels).inc();
    }

    /// An object has succeeded; `took` where its start is known.
    pub fn object_succeeded(&self, took: Option<Duration>) {
        if let Some(took) = took {
            self.object_duration.observe(took.as_secs_f64());
        }
        self.object_ended("succeeded", "Succeeded");
    }

    /// An object has failed.
    pub fn object_failed(&self, reason: &'static str) {
        self.object_ended("failed", reason);
    }

    fn object_ended(&self, outcome: &'static str, reason: &'static str) {
        let labels = EndLabels { outcome, reason };
        self.objects.get_or_create(&labels).inc();
    }
}
