//! `/livez`, `/readyz` and `/metrics`.
//!
//! Alive: no bounded piece of work has been running for longer than its bound allows. Ready: every gate is open (the caches are
//! complete), no watch has been failing for a minute, and the process is not shutting down.

use super::metrics::Metrics;
use axum::{
    Router, extract::State, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse,
    routing::get,
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// A watch that has been failing for this long is dead: what is decided on its cache is decided on old data.
pub const WATCH_DEAD: Duration = Duration::from_mins(1);
/// A watch that does not fail for this long has recovered, though nothing has happened that it could show. Longer than the longest
/// pause between two tries (30 s, doubled by jitter) and a try that ends by a timeout.
const WATCH_RECOVERED: Duration = Duration::from_secs(100);

/// What the probes are answered from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<HealthState>>,
}

#[derive(Debug, Default)]
struct HealthState {
    running: HashMap<u64, Running>,
    started: u64,
    watches: u64,
    failing: HashMap<WatchKey, Failing>,
    closed: BTreeSet<&'static str>,
    ending: bool,
}

/// A watch: several may be of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct WatchKey {
    number: u64,
    name: &'static str,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    due: Instant,
}

/// Since when a watch has been failing without a sign of life in between.
#[derive(Clone, Copy, Debug)]
struct Failing {
    since: Instant,
    last: Instant,
}

impl Failing {
    fn is_over(self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > WATCH_RECOVERED
    }

    fn is_dead(self, now: Instant) -> bool {
        !self.is_over(now) && now.saturating_duration_since(self.since) >= WATCH_DEAD
    }
}

/// A bounded piece of work that is running; dropped at its end.
#[derive(Debug)]
pub struct Activity {
    id: u64,
    health: Health,
}

/// Something that must be there before the process is ready.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    health: Health,
}

/// What a watch reports.
#[derive(Clone, Debug)]
pub struct WatchHealth {
    key: WatchKey,
    health: Health,
}

impl Health {
    /// Work that is cut off by a timeout before `due`: if it is still running then, its thread is blocked.
    pub fn activity(&self, name: &'static str, due: Instant) -> Activity {
        let mut state = self.lock();
        state.started += 1;
        let id = state.started;
        state.running.insert(id, Running { name, due });
        drop(state);
        Activity {
            id,
            health: self.clone(),
        }
    }

    /// Not ready until the gate is opened.
    pub fn gate(&self, name: &'static str) -> Gate {
        self.lock().closed.insert(name);
        Gate {
            name,
            health: self.clone(),
        }
    }

    /// A watch: not ready while it has been failing for [`WATCH_DEAD`].
    pub fn watch(&self, name: &'static str) -> WatchHealth {
        let mut state = self.lock();
        state.watches += 1;
        let number = state.watches;
        drop(state);
        WatchHealth {
            key: WatchKey { number, name },
            health: self.clone(),
        }
    }

    /// Not ready any more, for good: the process ends.
    pub fn ending(&self) {
        self.lock().ending = true;
    }

    /// `Err` names the work that should have ended.
    pub fn live(&self, now: Instant) -> Result<(), String> {
        let state = self.lock();
        let overdue = state.running.values().filter(|running| running.due < now);
        let overdue: BTreeSet<&str> = overdue.map(|running| running.name).collect();
        all_well(&overdue, "blocked: reconciles that outlast their limit")
    }

    /// `Err` names what is missing.
    pub fn ready(&self, now: Instant) -> Result<(), String> {
        let state = self.lock();
        if state.ending {
            return Err("shutting down".to_string());
        }
        all_well(&state.closed, "caches are not complete yet")?;
        let dead = state.failing.iter().filter(|(_, watch)| watch.is_dead(now));
        let dead: BTreeSet<&str> = dead.map(|(key, _)| key.name).collect();
        all_well(&dead, "watches have been failing for a minute")
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_well(failing: &BTreeSet<&str>, failure: &str) -> Result<(), String> {
    if failing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = failing.iter().copied().collect();
    Err(format!("{failure}: {}", names.join(", ")))
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.health.lock().running.remove(&self.id);
    }
}

impl Gate {
    /// It is there.
    pub fn open(&self) {
        self.health.lock().closed.remove(self.name);
    }
}

impl WatchHealth {
    /// The watch has shown something.
    pub fn succeeded(&self) {
        self.health.lock().failing.remove(&self.key);
    }

    /// A try failed.
    pub fn failed(&self, now: Instant) {
        let mut state = self.health.lock();
        let new = Failing {
            since: now,
            last: now,
        };
        let failing = state.failing.entry(self.key).or_insert(new);
        if failing.is_over(now) {
            *failing = new;
        }
        failing.last = now;
    }
}

/// Answers probes and scrapes until the token is cancelled.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Metrics,
    end: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state((health, metrics));
    axum::serve(listener, router)
        .with_graceful_shutdown(end.cancelled_owned())
        .await
}

type Probed = State<(Health, Metrics)>;

async fn livez(State((health, _)): Probed) -> impl IntoResponse {
    answer(health.live(Instant::now()))
}

async fn readyz(State((health, _)): Probed) -> impl IntoResponse {
    answer(health.ready(Instant::now()))
}

async fn scrape(State((_, metrics)): Probed) -> impl IntoResponse {
    match metrics.encode() {
        Ok(text) => (
            StatusCode::OK,
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn answer(probe: Result<(), String>) -> (StatusCode, String) {
    match probe {
        Ok(()) => (StatusCode::OK, "ok\n".to_string()),
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, failure + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_outlasts_its_bound_is_noticed() {
        let health = Health::default();
        let now = Instant::now();
        let minute = Duration::from_mins(1);
        let blocked = health.activity("RedisCluster", now + minute);
        let running = health.activity("RedisBackup", now + 3 * minute);
        assert_eq!(health.live(now), Ok(()));
        assert_eq!(
            health.live(now + 2 * minute),
            Err("blocked: reconciles that outlast their limit: RedisCluster".to_string())
        );
        drop((blocked, running));
        assert_eq!(health.live(now + 5 * minute), Ok(()));
    }

    #[test]
    fn ready_with_every_gate_open_until_the_end() {
        let health = Health::default();
        let now = Instant::now();
        let (pods, sets) = (health.gate("pods"), health.gate("sets"));
        pods.open();
        let closed = Err("caches are not complete yet: sets".to_string());
        assert_eq!(health.ready(now), closed);
        sets.open();
        assert_eq!(health.ready(now), Ok(()));
        health.ending();
        assert!(health.ready(now).is_err());
    }

    #[test]
    fn a_watch_dead_for_a_minute_closes_readiness() {
        let health = Health::default();
        let watch = health.watch("Pod");
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        for second in [0, 20, 50] {
            watch.failed(at(second));
        }
        assert_eq!(health.ready(at(59)), Ok(()));
        assert_eq!(
            health.ready(at(60)),
            Err("watches have been failing for a minute: Pod".to_string())
        );
        watch.succeeded();
        assert_eq!(health.ready(at(60)), Ok(()));
        // Without a sign of life: no failure for long is one.
        watch.failed(at(100));
        watch.failed(at(190));
        assert!(health.ready(at(200)).is_err());
        assert_eq!(health.ready(at(300)), Ok(()));
        watch.failed(at(300));
        assert_eq!(health.ready(at(310)), Ok(()));
    }

    #[test]
    fn a_watch_does_not_hide_another_of_its_kind() {
        let health = Health::default();
        let (failing, healthy) = (health.watch("Pod"), health.watch("Pod"));
        let begun = Instant::now();
        let minute = begun + Duration::from_mins(1);
        failing.failed(begun);
        failing.failed(minute);
        healthy.succeeded();
        assert!(health.ready(minute).is_err());
    }
}
