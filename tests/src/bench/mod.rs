//! Benchmarks: ours and its rivals interleaved in one run, the same data, the same machine, the same minute.

mod backup;
mod formation;
mod report;
mod restore;
mod servers;

pub use report::{Goal, Measurement, Row, table};

use anyhow::{Result, bail};

/// Rounds of each case; the figures are medians over them.
const ROUNDS: usize = 5;

/// The names of the cases, in the order they run.
pub const CASES: [&str; 3] = ["backup-gzip", "restore-one-owner", "formation"];

/// Runs one case and answers a row for each of its rivals.
pub async fn run(case: &str) -> Result<Vec<Row>> {
    match case {
        "backup-gzip" => backup::run(ROUNDS).await,
        "restore-one-owner" => restore::run(ROUNDS).await,
        "formation" => formation::run(ROUNDS).await,
        other => bail!(
            "there is no case '{other}': choose one of {}",
            CASES.join(", ")
        ),
    }
}
