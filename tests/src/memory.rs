//! What this process holds in memory, for the suites that bound it. Such a suite has one test a program, so that nothing else
//! runs beside it, and its servers run in processes of their own.

use anyhow::{Context, Result, ensure};
use std::{
    env, fs,
    future::Future,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// The settings of glibc's allocator that the images have (deploy/Dockerfile).
pub const ALLOCATOR: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_ARENA_MAX", "2"),
];

/// Runs the measurement with the allocator set as in the images: the settings are read at the start of a process, so the program
/// runs itself once more.
pub fn as_in_the_image(measure: impl Future<Output = Result<()>>) -> Result<()> {
    let is_set = |(name, value): &(&str, &str)| env::var(name).is_ok_and(|found| found == *value);
    if ALLOCATOR.iter().all(is_set) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        return runtime.block_on(measure);
    }
    let again = Command::new(env::current_exe()?)
        .arg("--nocapture")
        .envs(ALLOCATOR)
        .status()?;
    ensure!(again.success(), "the measurement ended with {again}");
    Ok(())
}

/// Anonymous resident memory in bytes: the program's own pages, which count as they are first used, are not in it.
pub fn anonymous() -> Result<u64> {
    anonymous_of(std::process::id())
}

/// The same of another process.
pub fn anonymous_of(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let line = line.context("no RssAnon in the status of a process")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes * 1024)
}

/// The most memory that was seen since it was made.
pub struct Peak {
    before: u64,
    most: Arc<AtomicU64>,
    looking: JoinHandle<()>,
}

impl Peak {
    /// Begins to look, every few milliseconds.
    pub fn watch() -> Result<Self> {
        let before = anonymous()?;
        let most = Arc::new(AtomicU64::new(before));
        let seen = Arc::clone(&most);
        let looking = tokio::spawn(async move {
            while let Ok(now) = anonymous() {
                seen.fetch_max(now, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Ok(Self {
            before,
            most,
            looking,
        })
    }

    /// Bytes that came on top at the worst moment.
    pub fn added(self) -> u64 {
        self.looking.abort();
        self.most
            .load(Ordering::Relaxed)
            .saturating_sub(self.before)
    }
}
