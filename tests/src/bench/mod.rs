//! Benchmarks: ours and its rivals interleaved in one run, the same data, the same machine, the same minute. The first round
//! warms up and is not measured; who goes first alternates.

mod backup;
mod formation;
mod planning;
mod report;
mod reshard;
mod restore;
mod servers;

pub use report::{Goal, Measurement, Row, merge, table};
pub use servers::sole_primary;

use anyhow::{Result, bail};

/// Rounds of each case that are measured; the figures are medians over them.
const ROUNDS: usize = 5;

/// The rounds of a case, with whether ours goes first and whether the round is measured.
fn rounds() -> impl Iterator<Item = Round> {
    (0..=ROUNDS).map(|number| Round {
        number,
        ours_first: number % 2 == 1,
        measured: number > 0,
    })
}

/// One round.
#[derive(Clone, Copy, Debug)]
struct Round {
    number: usize,
    ours_first: bool,
    measured: bool,
}

impl Round {
    /// Runs both sides in the round's order; returns ours and the rival's.
    async fn run<A, B>(
        self,
        ours: impl Future<Output = Result<A>>,
        rival: impl Future<Output = Result<B>>,
    ) -> Result<(A, B)> {
        if self.ours_first {
            let ours = ours.await?;
            return Ok((ours, rival.await?));
        }
        let rival = rival.await?;
        Ok((ours.await?, rival))
    }
}

/// The names of the cases, in the order they run.
pub const CASES: [&str; 7] = [
    "backup-gzip",
    "restore-one-node",
    "formation",
    "formation-10",
    "formation-50",
    "reshard",
    "planning",
];

/// Runs one case and answers a row for each of its rivals.
pub async fn run(case: &str) -> Result<Vec<Row>> {
    match case {
        "backup-gzip" => backup::run().await,
        "restore-one-node" => restore::run().await,
        "formation" => formation::run("formation", 3).await,
        "formation-10" => formation::run("formation-10", 10).await,
        "formation-50" => formation::run("formation-50", 50).await,
        "reshard" => reshard::run_case().await,
        "planning" => planning::run().await,
        other => bail!(
            "there is no case '{other}': choose one of {}",
            CASES.join(", ")
        ),
    }
}
