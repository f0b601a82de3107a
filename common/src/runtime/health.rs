//! `/livez`, `/readyz` and `/metrics`.
//!
//! Alive: every loop that promised to turn has turned lately. Ready: every gate is open (the caches are complete) and the
//! process is not on its way out.

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

/// A loop that has not turned for this long is taken for dead.
pub const STALE: Duration = Duration::from_mins(1);

/// What the probes are answered from. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    state: Arc<Mutex<HealthState>>,
}

#[derive(Debug, Default)]
struct HealthState {
    beats: HashMap<&'static str, Instant>,
    closed: BTreeSet<&'static str>,
    ending: bool,
}

/// A loop that must turn.
#[derive(Debug)]
pub struct Heartbeat {
    name: &'static str,
    health: Health,
}

/// Something that must be there before the process is ready.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    health: Health,
}

impl Health {
    /// A loop that promises to beat at least every [`STALE`] until it is retired.
    pub fn heartbeat(&self, name: &'static str) -> Heartbeat {
        let heartbeat = Heartbeat {
            name,
            health: self.clone(),
        };
        heartbeat.beat();
        heartbeat
    }

    /// Not ready until the gate is opened.
    pub fn gate(&self, name: &'static str) -> Gate {
        self.lock().closed.insert(name);
        Gate {
            name,
            health: self.clone(),
        }
    }

    /// Not ready any more, for good: the process ends.
    pub fn ending(&self) {
        self.lock().ending = true;
    }

    /// `Err` names the loops that have not turned for [`STALE`].
    pub fn live(&self, now: Instant) -> Result<(), String> {
        let state = self.lock();
        let mut silent: Vec<&str> = state
            .beats
            .iter()
            .filter(|(_, beat)| now.saturating_duration_since(**beat) > STALE)
            .map(|(name, _)| *name)
            .collect();
        silent.sort_unstable();
        all_well(&silent, "loops that no longer turn")
    }

    /// `Err` names what is missing.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.lock();
        if state.ending {
            return Err("shutting down".to_string());
        }
        let closed: Vec<&str> = state.closed.iter().copied().collect();
        all_well(&closed, "not ready yet")
    }

    fn lock(&self) -> MutexGuard<'_, HealthState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn all_well(troubled: &[&str], trouble: &str) -> Result<(), String> {
    if troubled.is_empty() {
        return Ok(());
    }
    Err(format!("{trouble}: {}", troubled.join(", ")))
}

impl Heartbeat {
    /// The loop turns.
    pub fn beat(&self) {
        self.health.lock().beats.insert(self.name, Instant::now());
    }

    /// The loop has ended as it should. A heartbeat that is dropped without this counts as a loop that died.
    pub fn retire(self) {
        self.health.lock().beats.remove(self.name);
    }
}

impl Gate {
    /// It is there.
    pub fn open(&self) {
        self.health.lock().closed.remove(self.name);
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
    answer(health.ready())
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
        Err(trouble) => (StatusCode::SERVICE_UNAVAILABLE, trouble + "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stops_turning_is_noticed_and_one_that_ends_is_not() {
        let health = Health::default();
        let beat = health.heartbeat("loop");
        let later = Instant::now() + STALE + Duration::from_secs(1);
        assert_eq!(health.live(Instant::now()), Ok(()));
        assert_eq!(
            health.live(later),
            Err("loops that no longer turn: loop".to_string())
        );
        beat.retire();
        assert_eq!(health.live(later), Ok(()));
    }

    #[test]
    fn a_dropped_heartbeat_is_a_dead_loop() {
        let health = Health::default();
        drop(health.heartbeat("loop"));
        let later = Instant::now() + STALE + Duration::from_secs(1);
        assert!(health.live(later).is_err());
    }

    #[test]
    fn ready_when_every_gate_is_open_and_the_end_has_not_come() {
        let health = Health::default();
        let (pods, sets) = (health.gate("pods"), health.gate("sets"));
        pods.open();
        assert_eq!(health.ready(), Err("not ready yet: sets".to_string()));
        sets.open();
        assert_eq!(health.ready(), Ok(()));
        health.ending();
        assert!(health.ready().is_err());
    }
}
