//! What was done before goes on in the background: containers of deleted pods are removed, networks taken down.

use anyhow::{Context, Result};
use std::time::Duration;
use tokio::{
    fs,
    time::{Instant, sleep},
};

/// How long is waited for a machine that others keep busy as well.
const LIMIT: Duration = Duration::from_mins(1);
/// Over which the load is measured.
const SAMPLE: Duration = Duration::from_secs(2);
/// Per cent of all processors that may be busy: a local cluster idle takes five.
const BUSY: u64 = 15;

/// Waits until the machine is idle, so that what is measured next does not pay for what was before.
pub async fn idle_machine() -> Result<()> {
    let end = Instant::now() + LIMIT;
    let mut before = ticks().await?;
    while Instant::now() < end {
        sleep(SAMPLE).await;
        let now = ticks().await?;
        let (busy, all) = (now.0 - before.0, now.1 - before.1);
        if busy * 100 <= all * BUSY {
            return Ok(());
        }
        before = now;
    }
    eprintln!("the machine was still busy after {LIMIT:?}");
    Ok(())
}

/// The time that all processors were busy, and all of it, in clock ticks since the start (`proc_stat(5)`).
async fn ticks() -> Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat").await?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields = line
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse::<u64>().context("a field of /proc/stat"));
    // The last two are parts of the first two.
    let fields: Vec<u64> = fields.take(8).collect::<Result<_>>()?;
    let all = fields.iter().sum::<u64>();
    let idle = fields.iter().skip(3).take(2).sum::<u64>();
    Ok((all - idle, all))
}
