//! Holds work still while others may take this replica for dead: its claim may be another's by then, and what two replicas
//! write at the same time is nobody's.

use super::{call::ApiError, leases::Membership};
use std::{future::poll_fn, task::Poll, time::Duration};

/// How long to wait after it could not be asked whose the work is.
const ASK_PAUSE: Duration = Duration::from_secs(1);

enum Turn<T> {
    Done(T),
    Lapsed,
}

/// Carries out the work that `begin` gives, and only while `membership` holds: in a lapse it is dropped, and begun anew when
/// `still_ours` has said that the claim still stands. `None`: it does not.
pub async fn fenced<T, Asking, Work>(
    mut membership: Membership,
    still_ours: impl Fn() -> Asking + Send,
    begin: impl Fn() -> Work + Send,
) -> Option<T>
where
    Asking: Future<Output = Result<bool, ApiError>> + Send,
    Work: Future<Output = T> + Send,
{
    let mut lapses = membership.lapses();
    loop {
        let mut work = Box::pin(begin());
        let turn = poll_fn(|context| {
            // Looked at before every step: a process that was frozen learns here that it was.
            let now = membership.lapses();
            if now.is_none() || now != lapses {
                return Poll::Ready(Turn::Lapsed);
            }
            work.as_mut().poll(context).map(Turn::Done)
        });
        match turn.await {
            Turn::Done(result) => return Some(result),
            Turn::Lapsed => {
                tracing::warn!("work is held still: others may take this replica for dead");
            }
        }
        drop(work);
        lapses = regained(&mut membership, &still_ours).await?;
    }
}

/// Waits until others see this replica as alive, and asks what became of its claim. `None`: it is another's.
async fn regained<Asking>(
    membership: &mut Membership,
    still_ours: &(impl Fn() -> Asking + Send),
) -> Option<Option<u64>>
where
    Asking: Future<Output = Result<bool, ApiError>> + Send,
{
    loop {
        let lapses = membership.lapses();
        if lapses.is_none() {
            if !membership.renewed().await {
                return None;
            }
            continue;
        }
        match still_ours().await {
            Ok(ours) => return ours.then_some(lapses),
            Err(error) => {
                tracing::warn!(%error, "work is held still: it is not known whose it is");
                tokio::time::sleep(ASK_PAUSE).await;
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

    /// Work that counts its steps until it is told to end.
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
    async fn work_stands_still_while_the_replica_may_be_taken_for_dead() {
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
        // A lapse that ended before anybody looked, as in a process that was frozen; and somebody else was faster.
        ours.store(false, Ordering::Relaxed);
        Membership::publish(&publish, Instant::now());
        Membership::publish(&publish, Instant::now() + long);
        assert_eq!(running.await.unwrap(), None);
        assert!(!end.load(Ordering::Relaxed));
    }
}
