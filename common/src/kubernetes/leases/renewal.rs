//! When a lease is renewed, and for how long a written lease is a promise.

use std::time::{Duration, Instant};

/// For how long a lease that was asked for at `asked` can be relied on. Others take over when they have seen no change for the
/// whole duration; that begins after `asked`. A tenth is left for clocks that run at different speeds and for writes that are
/// under way.
pub(super) fn promised_until(asked: Instant, duration: Duration) -> Instant {
    asked + duration * 9 / 10
}

/// How long to wait after a renewal.
pub(super) fn pause_after_success(duration: Duration) -> Duration {
    duration / 3
}

/// How long to wait after a try that failed: short while a promise runs, so that there are several tries before its end.
pub(super) fn pause_after_failure(duration: Duration, promised: bool) -> Duration {
    if promised {
        duration / 30
    } else {
        (duration / 6).min(Duration::from_secs(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_tries_fit_into_a_promise() {
        let duration = Duration::from_secs(15);
        let hung_request = duration / 6;
        let two_tries = (hung_request + pause_after_failure(duration, true)) * 2;
        let third_ends = pause_after_success(duration) + two_tries + hung_request;
        let asked = Instant::now();
        assert!(asked + third_ends <= promised_until(asked, duration));
    }
}
