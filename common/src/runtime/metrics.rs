//! Metrics of the process, in the OpenMetrics text format. Every name begins with `redis_operator_`, but for the process's own.

use super::program::Program;
use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
    },
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
        info::Info,
    },
    registry::{Metric, Registry},
};
use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

/// Prefix of the suite's metrics.
pub const PREFIX: &str = "redis_operator";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Ended {
    kind: String,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Timed {
    kind: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TaskLabels {
    outcome: &'static str,
}

/// A call to the API server; watches are not counted.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiCall {
    /// get, list.
    Read,
    /// create, update, patch, delete.
    Write,
}

impl EncodeLabelValue for ApiCall {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
        .encode(encoder)
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Called {
    call: ApiCall,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallFailed {
    call: ApiCall,
    reason: &'static str,
}

type Durations<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

/// Calls to the API server are made by functions that know no process: what they measure is kept once for all of it.
static API_CALLS: LazyLock<Durations<Called>> = LazyLock::new(|| {
    let calls: Durations<Called> = Family::new_with_constructor(call_durations);
    // Both are there from the start: a rate over a series that appears later misses its first values.
    for call in [ApiCall::Read, ApiCall::Write] {
        drop(calls.get_or_create(&Called { call }));
    }
    calls
});
static API_ERRORS: LazyLock<Family<CallFailed, Counter>> = LazyLock::new(Family::default);

/// A call to the API server has ended; `reason` says why it failed.
pub fn api_called(call: ApiCall, reason: Option<&'static str>, took: Duration) {
    let seconds = took.as_secs_f64();
    API_CALLS.get_or_create(&Called { call }).observe(seconds);
    if let Some(reason) = reason {
        API_ERRORS.get_or_create(&CallFailed { call, reason }).inc();
    }
}

fn call_durations() -> Histogram {
    Histogram::new([0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0])
}

/// A metric that the program has, for the page that lists them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// As it is scraped.
    pub name: String,
    /// What it shows.
    pub help: &'static str,
}

/// Where metrics are registered under the suite's prefix.
pub struct Registrar<'a> {
    registry: &'a mut Registry,
    described: &'a mut Vec<Described>,
}

impl Registrar<'_> {
    /// Registers a metric by its name without prefix, unit suffix included.
    pub fn register(&mut self, name: &'static str, help: &'static str, metric: impl Metric) {
        let suffix = match metric.metric_type() {
            MetricType::Counter => "_total",
            MetricType::Info => "_info",
            MetricType::Gauge | MetricType::Histogram | MetricType::Unknown => "",
        };
        self.described.push(Described {
            name: format!("{PREFIX}_{name}{suffix}"),
            help,
        });
        self.registry
            .register(format!("{PREFIX}_{name}"), help, metric);
    }
}

/// The registry and what every controller counts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    described: Arc<Mutex<Vec<Described>>>,
    reconciles: Family<Ended, Counter>,
    durations: Durations<Timed>,
    queue_depth: Family<Kind, Gauge>,
    watch_errors: Family<Kind, Counter>,
    invalid_objects: Family<Kind, Counter>,
    tasks_ended: Family<TaskLabels, Counter>,
    tasks_running: Gauge,
    leading: Gauge,
}

fn durations() -> Histogram {
    Histogram::new([0.005, 0.02, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0])
}

impl Metrics {
    /// Registers what every controller counts.
    pub fn new(program: Program) -> Self {
        let metrics = Self {
            registry: Arc::default(),
            described: Arc::default(),
            reconciles: Family::default(),
            durations: Family::new_with_constructor(durations),
            queue_depth: Family::default(),
            watch_errors: Family::default(),
            invalid_objects: Family::default(),
            tasks_ended: Family::default(),
            tasks_running: Gauge::default(),
            leading: Gauge::default(),
        };
        metrics.register(|r| {
            let build = [("program", program.name), ("version", program.version)];
            r.register("build", "What runs", Info::new(build));
            r.register("reconciles", "Ended reconciles", metrics.reconciles.clone());
            r.register(
                "reconcile_duration_seconds",
                "Time a reconcile took",
                metrics.durations.clone(),
            );
            r.register(
                "reconcile_queue_depth",
                "Objects that wait for their reconcile",
                metrics.queue_depth.clone(),
            );
            r.register(
                "watch_errors",
                "Failed watches",
                metrics.watch_errors.clone(),
            );
            r.register(
                "invalid_objects",
                "Objects that do not parse and are left alone",
                metrics.invalid_objects.clone(),
            );
            r.register(
                "api_call_duration_seconds",
                "Time a call to the API server took, watches not counted",
                API_CALLS.clone(),
            );
            r.register(
                "api_errors",
                "Failed calls to the API server",
                API_ERRORS.clone(),
            );
            r.register("tasks_ended", "Ended tasks", metrics.tasks_ended.clone());
            r.register(
                "tasks_running",
                "Running tasks",
                metrics.tasks_running.clone(),
            );
            r.register(
                "leading",
                "1 while this replica leads",
                metrics.leading.clone(),
            );
        });
        let resident = Described {
            name: RESIDENT.to_owned(),
            help: RESIDENT_HELP,
        };
        metrics.collector(Box::new(Process), vec![resident]);
        metrics
    }

    /// Registers a program's own metrics.
    pub fn register(&self, register: impl FnOnce(&mut Registrar<'_>)) {
        register(&mut Registrar {
            registry: &mut self.lock(),
            described: &mut self.descriptions(),
        });
    }

    /// Adds metrics that are computed at each scrape.
    pub(super) fn collector(&self, collector: Box<dyn Collector>, described: Vec<Described>) {
        self.lock().register_collector(collector);
        self.descriptions().extend(described);
    }

    /// Every metric of the program, also those without a sample yet.
    pub fn described(&self) -> Vec<Described> {
        self.descriptions().clone()
    }

    fn descriptions(&self) -> std::sync::MutexGuard<'_, Vec<Described>> {
        self.described
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics as text.
    pub fn encode(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock())?;
        Ok(text)
    }

    /// A reconcile has ended.
    pub fn reconciled(
        &self,
        kind: &str,
        outcome: &'static str,
        reason: &'static str,
        took: Duration,
    ) {
        let kind = kind.to_string();
        let timed = Timed {
            kind: kind.clone(),
            outcome,
        };
        self.durations
            .get_or_create(&timed)
            .observe(took.as_secs_f64());
        let ended = Ended {
            kind,
            outcome,
            reason,
        };
        self.reconciles.get_or_create(&ended).inc();
    }

    /// So many objects wait for their reconcile.
    pub fn queued(&self, kind: &str, objects: usize) {
        let kind = kind.to_string();
        let depth = i64::try_from(objects).unwrap_or(i64::MAX);
        self.queue_depth.get_or_create(&Kind { kind }).set(depth);
    }

    /// A watch failed; it starts again by itself.
    pub fn watch_failed(&self, kind: &str) {
        let kind = kind.to_string();
        self.watch_errors.get_or_create(&Kind { kind }).inc();
    }

    /// An object does not parse.
    pub fn invalid_object(&self, kind: &str) {
        let kind = kind.to_string();
        self.invalid_objects.get_or_create(&Kind { kind }).inc();
    }

    /// A task was started.
    pub fn task_started(&self) {
        self.tasks_running.inc();
    }

    /// A task has ended.
    pub fn task_ended(&self, outcome: &'static str) {
        self.tasks_running.dec();
        self.tasks_ended
            .get_or_create(&TaskLabels { outcome })
            .inc();
    }

    /// This replica leads or does not.
    pub fn leading(&self, leads: bool) {
        self.leading.set(i64::from(leads));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const RESIDENT: &str = "process_resident_memory_bytes";
const RESIDENT_HELP: &str = "Resident memory";

/// What is read at each scrape.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let resident = ConstGauge::new(resident_bytes().unwrap_or(0));
        resident.encode(encoder.encode_descriptor(
            RESIDENT,
            RESIDENT_HELP,
            None,
            resident.metric_type(),
        )?)?;
        Ok(())
    }
}

/// Resident memory of this process; `None` where /proc does not say.
pub fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_can_be_scraped() {
        let metrics = Metrics::new(Program {
            name: "x-controller",
            version: "1.2.3",
        });
        metrics.reconciled(
            "RedisCluster",
            "settled",
            "Settled",
            Duration::from_millis(7),
        );
        api_called(ApiCall::Read, Some("ApiTimeout"), Duration::from_millis(7));
        metrics.register(|registry| registry.register("slots", "Slots", Gauge::<i64>::default()));
        let text = metrics.encode().unwrap();
        for line in [
            r#"redis_operator_build_info{program="x-controller",version="1.2.3"} 1"#,
            r#"redis_operator_reconciles_total{kind="RedisCluster",outcome="settled",reason="Settled"} 1"#,
            r#"redis_operator_reconcile_duration_seconds_bucket{le="0.02",kind="RedisCluster",outcome="settled"} 1"#,
            "redis_operator_slots 0",
            r#"redis_operator_api_call_duration_seconds_count{call="read"} "#,
            r#"redis_operator_api_call_duration_seconds_count{call="write"} "#,
            r#"redis_operator_api_errors_total{call="read",reason="ApiTimeout"} "#,
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(resident_bytes().unwrap() > 100_000);
    }
}
