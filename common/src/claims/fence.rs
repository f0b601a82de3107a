//! Runs work only while this replica's member Lease is valid. When it may have expired, the leader may have freed the unit: two replicas
//! that write the same keys at the same time leave a mixture of both.

use crate::kubernetes::{call::ApiError, leases::Membership};
use std::{future::poll_fn, task::Poll, time::Duration};

/// How long to wait after the claim could not be read.
const READ_AGAIN: Duration = Duration::from_secs(1);

enum WorkPoll<T> {
    Finished(T),
    Lapsed,
}

/// Runs the work that `begin` makes while `membership` is valid. In a lapse the work is dropped; it begins again when `is_held` has said
/// that the claim is still this replica's. `None`: it is not.
pub async fn fenced<T, Reading, Work>(
    mut membership: Membership,
    is_held: impl Fn() -> Reading + Send,
    begin: impl Fn() -> Work + Send,
) -> Option<T>
where
    Reading: Future<Output = Result<bool, ApiError>> + Send,
    Work: Future<Output = T> + Send,
{
    let mut lapses = membership.lapses();
    loop {
        let mut work = Box::pin(begin());
        let polled = poll_fn(|context| {
            // Checked before every poll: a process that was frozen finds out here.
            let now = membership.lapses();
            if now.is_none() || now != lapses {
                return Poll::Ready(WorkPoll::Lapsed);
            }
            work.as_mut().poll(context).map(WorkPoll::Finished)
        });
        match polled.await {
            WorkPoll::Finished(result) => return Some(result),
            WorkPoll::Lapsed => {
                tracing::warn!(
                    "work is suspended: this replica's member Lease was not renewed in time"
                );
            }
        }
        drop(work);
        lapses = regained(&mut membership, &is_held).await?;
    }
}

/// Waits until the member Lease is valid again, and reads the claim. `None`: it is no longer this replica's.
async fn regained<Reading>(
    membership: &mut Membership,
    is_held: &(impl Fn() -> Reading + Send),
) -> Option<Option<u64>>
where
    Reading: Future<Output = Result<bool, ApiError>> + Send,
{
    loop {
        let lapses = membership.lapses();
        if lapses.is_none() {
            if !membership.renewed().await {
                return None;
            }
            continue;
        }
        match is_held().await {
            Ok(held) => return held.then_some(lapses),
            Err(error) => {
                tracing::warn!(%error, "work is suspended: its claim cannot be read");
                tokio::time::sleep(READ_AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, AtomicU32, Ordering},
        },
        time::Instant,
    };
    use tokio::sync::watch;

    /// Work that counts its steps until `end` is set.
    async fn stepping(steps: Arc<AtomicU32>, end: Arc<AtomicBool>) {
        while !end.load(Ordering::Relaxed) {
            steps.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn moves(steps: &AtomicU32) -> bool {
        let before = steps.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(30)).await;
        steps.load(Ordering::Relaxed) > before
    }

    #[tokio::test]
    async fn work_is_suspended_while_the_member_lease_may_have_expired() {
        let long = Duration::from_mins(1);
        let (publish, alive) = watch::channel(None);
        let membership = Membership::of("a", alive);
        Membership::publish(&publish, Instant::now() + long);
        let (steps, end) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let ours = Arc::new(AtomicBool::new(true));
        let answer = Arc::clone(&ours);
        let asking = move || {
            let answer = answer.load(Ordering::Relaxed);
            async move { Ok(answer) }
        };
        let (count, stop) = (Arc::clone(&steps), Arc::clone(&end));
        let begin = move || stepping(Arc::clone(&count), Arc::clone(&stop));
        let running = tokio::spawn(fenced(membership, asking, begin));
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(moves(&steps).await);
        // Not renewed in time.
        Membership::publish(&publish, Instant::now());
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!moves(&steps).await);
        Membership::publish(&publish, Instant::now() + long);
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(moves(&steps).await, "the claim still stands");
        // A lapse that ended before the next poll, as in a process that was frozen, while another replica took the unit.
        ours.store(false, Ordering::Relaxed);
        Membership::publish(&publish, Instant::now());
        Membership::publish(&publish, Instant::now() + long);
        assert_eq!(running.await.unwrap(), None);
        assert!(!end.load(Ordering::Relaxed));
    }
}
