//! `make bench`: every case against its rivals; a table for people and `target/bench/report.json` for programs.

use anyhow::{Context, Result};
use clap::Parser;
use std::{fs, path::PathBuf};
use tests::bench;

#[derive(Parser)]
#[command(about = "Benchmarks against rivals, interleaved in one run")]
struct Arguments {
    /// Run only this case.
    #[arg(long)]
    case: Option<String>,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
}

#[tokio::main(worker_threads = 2)]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let cases: Vec<&str> = match &arguments.case {
        Some(case) => vec![case],
        None => bench::CASES.to_vec(),
    };
    let mut rows = Vec::new();
    for case in cases {
        rows.extend(
            bench::run(case)
                .await
                .with_context(|| format!("case {case}"))?,
        );
    }
    print!("{}", bench::table(&rows));
    if let Some(folder) = arguments.report.parent() {
        fs::create_dir_all(folder)?;
    }
    let before = fs::read_to_string(&arguments.report).ok();
    fs::write(&arguments.report, bench::merge(before.as_deref(), &rows)?)?;
    Ok(())
}
