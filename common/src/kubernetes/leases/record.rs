//! What a lease says, and since when it has said so on our own clock.

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// What a lease without a duration is taken to have.
const DEFAULT_DURATION: Duration = Duration::from_secs(15);

/// Whether a lease binds others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeaseState {
    /// It has no holder.
    Free,
    /// Held, and alive as far as we have seen.
    Held(String),
    /// Its holder has not renewed it for its whole duration while we watched it.
    Expired(String),
}

/// Remembers since when each lease has not changed.
#[derive(Debug, Default)]
pub(super) struct Observer {
    observations: HashMap<String, Observation>,
}

#[derive(Debug)]
struct Observation {
    record: Record,
    since: Instant,
}

/// The parts of a lease that its holder changes by renewing. Labels that others put on it say nothing about the holder.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    holder: String,
    renewed: Option<MicroTime>,
    transitions: i32,
}

impl Observer {
    /// Takes note of a lease as the server shows it now and judges it.
    pub(super) fn look(&mut self, key: &str, lease: &Lease, now: Instant) -> LeaseState {
        let record = record(lease);
        let observation = self
            .observations
            .entry(key.to_string())
            .or_insert(Observation {
                record: record.clone(),
                since: now,
            });
        if observation.record != record {
            *observation = Observation { record, since: now };
        }
        if observation.record.holder.is_empty() {
            return LeaseState::Free;
        }
        let holder = observation.record.holder.clone();
        if now.saturating_duration_since(observation.since) < duration(lease) {
            return LeaseState::Held(holder);
        }
        LeaseState::Expired(holder)
    }

    /// How long the lease has not changed.
    pub(super) fn unchanged_for(&self, key: &str, now: Instant) -> Duration {
        self.observations
            .get(key)
            .map_or(Duration::ZERO, |observation| {
                now.saturating_duration_since(observation.since)
            })
    }

    /// Keeps only the leases that are still there.
    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.observations.retain(|key, _| keep(key));
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time,
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

/// How long the lease binds without being renewed.
pub(super) fn duration(lease: &Lease) -> Duration {
    lease
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_duration_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(DEFAULT_DURATION, Duration::from_secs)
}

/// The spec after `holder` has taken or renewed the lease.
pub(super) fn held(before: Option<&LeaseSpec>, holder: &str, duration: Duration) -> LeaseSpec {
    let now = MicroTime(Timestamp::now());
    let before = before.cloned().unwrap_or_default();
    let renews = before.holder_identity.as_deref() == Some(holder);
    let transitions = before.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(holder.to_string()),
        lease_duration_seconds: Some(whole_seconds(duration)),
        acquire_time: before
            .acquire_time
            .filter(|_| renews)
            .or_else(|| Some(now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(if renews {
            transitions
        } else {
            transitions.saturating_add(1)
        }),
        ..LeaseSpec::default()
    }
}

/// The spec after the holder has released the lease.
pub(super) fn released(before: &LeaseSpec) -> LeaseSpec {
    LeaseSpec {
        holder_identity: None,
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(Timestamp::now())),
        acquire_time: None,
        ..before.clone()
    }
}

fn whole_seconds(duration: Duration) -> i32 {
    let rounded_up = duration.as_secs() + u64::from(duration.subsec_nanos() > 0);
    i32::try_from(rounded_up).unwrap_or(i32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ObjectMeta;

    fn lease(holder: &str, renewed: i64, seconds: i32) -> Lease {
        Lease {
            metadata: ObjectMeta::default(),
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_string()),
                lease_duration_seconds: Some(seconds),
                renew_time: Some(MicroTime(Timestamp::from_second(renewed).unwrap())),
                ..LeaseSpec::default()
            }),
        }
    }

    #[test]
    fn expiry_is_counted_from_the_last_change_we_saw() {
        let mut observer = Observer::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        // The holder's clock is years behind: of no account.
        let first = lease("a", 1_000, 15);
        assert_eq!(
            observer.look("l", &first, at(0)),
            LeaseState::Held("a".into())
        );
        assert_eq!(
            observer.look("l", &first, at(14)),
            LeaseState::Held("a".into())
        );
        let renewed = lease("a", 1_001, 15);
        assert_eq!(
            observer.look("l", &renewed, at(14)),
            LeaseState::Held("a".into())
        );
        assert_eq!(
            observer.look("l", &renewed, at(28)),
            LeaseState::Held("a".into())
        );
        assert_eq!(
            observer.look("l", &renewed, at(29)),
            LeaseState::Expired("a".into())
        );
    }

    #[test]
    fn what_was_never_seen_before_is_alive() {
        let mut observer = Observer::default();
        let old = lease("a", 0, 15);
        assert_eq!(
            observer.look("l", &old, Instant::now()),
            LeaseState::Held("a".into())
        );
        assert_eq!(
            observer.look("m", &lease("", 0, 15), Instant::now()),
            LeaseState::Free
        );
    }

    #[test]
    fn renewing_is_no_transition_and_taking_is_one() {
        let first = held(None, "a", Duration::from_secs(15));
        assert_eq!(first.lease_transitions, Some(1));
        let renewed = held(Some(&first), "a", Duration::from_secs(15));
        assert_eq!(renewed.lease_transitions, Some(1));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        let taken = held(Some(&renewed), "b", Duration::from_millis(1500));
        assert_eq!(taken.lease_transitions, Some(2));
        assert_eq!(taken.lease_duration_seconds, Some(2));
    }
}
