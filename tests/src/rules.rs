//! The alerts that are installed with the controllers.

use anyhow::{Context, Result};
use std::collections::BTreeSet;

/// The PrometheusRule, as it is installed.
pub const ALERTS: &str = include_str!("../../deploy/kustomize/monitoring/rules.yaml");

/// Its groups, as a file that Prometheus reads.
pub fn groups() -> Result<String> {
    let (_, spec) = ALERTS.split_once("\nspec:\n").context("no spec")?;
    let lines = spec
        .lines()
        .map(|line| line.strip_prefix("  ").unwrap_or(line));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

/// The metrics in its expressions that begin so.
pub fn metrics(prefix: &str) -> Result<BTreeSet<String>> {
    let groups = groups()?;
    let words = groups.split(|c: char| !c.is_ascii_lowercase() && c != '_');
    let names = words.filter(|word| word.starts_with(prefix));
    Ok(names.map(ToOwned::to_owned).collect())
}
