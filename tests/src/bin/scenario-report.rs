//! The end of `make scenarios`: the rows of a run as a table for people and as JSON for programs, and in the README on request.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use std::{fs, path::PathBuf};
use tests::scenario::report;

#[derive(Parser)]
#[command(about = "Renders the rows that scenarios have reported")]
struct Arguments {
    /// The file of rows: JSON lines. Beside it the table (.md) and the list of rows (.json) are written.
    rows: PathBuf,
    /// A document whose table of scenarios is replaced by this one.
    #[arg(long)]
    document: Option<PathBuf>,
}

fn main() -> Result<()> {
    let Arguments { rows, document } = Arguments::parse();
    let lines = fs::read_to_string(&rows)
        .with_context(|| format!("{}: run `make scenarios` first", rows.display()))?;
    let all = report::rows(&lines)?;
    ensure!(!all.is_empty(), "{} has no rows", rows.display());
    let table = report::markdown(&all);
    let markdown = rows.with_extension("md");
    fs::write(&markdown, &table)?;
    fs::write(
        rows.with_extension("json"),
        serde_json::to_string_pretty(&all)?,
    )?;
    println!("{} scenarios: {}", all.len(), markdown.display());
    if let Some(document) = document {
        let text = fs::read_to_string(&document)?;
        let text =
            report::replaced(&text, &table).with_context(|| document.display().to_string())?;
        fs::write(&document, text)?;
    }
    Ok(())
}
