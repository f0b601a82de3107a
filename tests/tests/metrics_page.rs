//! common/METRICS.md lists the metrics that the controllers have, and no other.

use anyhow::{Context, Result};
use backup_controller::{
    metrics::{self as of_backups, BackupMetrics},
    object_metrics as backups,
};
use common::{
    claims::metrics::WorkMetrics,
    runtime::{
        Program,
        metrics::{Described, Metrics},
    },
};
use restore_controller::{
    metrics::{self as of_restores, RestoreMetrics},
    object_metrics as restores,
};
use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../common/METRICS.md");

fn program() -> Metrics {
    Metrics::new(Program {
        name: "test",
        version: "0",
    })
}

/// The rows of the section's table: name and help.
fn listed(section: &str) -> Result<BTreeSet<(String, String)>> {
    let heading = format!("\n## {section}\n");
    let (_, text) = PAGE.split_once(&heading).context(heading)?;
    let text = text.split_once("\n## ").map_or(text, |(text, _)| text);
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let name = cells.next().context("a name")?.trim_matches('`');
        let help = cells.nth(1).context("a description")?;
        Ok((name.to_owned(), help.to_owned()))
    })
    .collect()
}

/// What a program has beyond what every program has.
fn own(metrics: &Metrics) -> BTreeSet<(String, String)> {
    let all = names(metrics);
    all.difference(&names(&program())).cloned().collect()
}

fn names(metrics: &Metrics) -> BTreeSet<(String, String)> {
    let described = metrics.described().into_iter();
    described
        .map(|Described { name, help }| (name, help.to_owned()))
        .collect()
}

#[test]
fn the_page_lists_every_metric_and_no_other() -> Result<()> {
    let cluster = program();
    cluster.object_gauges(&cluster_controller::metrics::GAUGES, Vec::new);
    let backup = program();
    BackupMetrics::new(&backup);
    WorkMetrics::new(&backup, of_backups::NAMES);
    backup.object_gauges(&backups::GAUGES, Vec::new);
    let restore = program();
    RestoreMetrics::new(&restore);
    WorkMetrics::new(&restore, of_restores::NAMES);
    restore.object_gauges(&restores::GAUGES, Vec::new);
    assert_eq!(listed("Every controller")?, names(&program()));
    assert_eq!(listed("cluster-controller")?, own(&cluster));
    assert_eq!(listed("backup-controller")?, own(&backup));
    assert_eq!(listed("restore-controller")?, own(&restore));
    Ok(())
}
