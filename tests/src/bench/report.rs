//! What a benchmark answers: a row for each rival, printed as a table and written as JSON.

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write;

/// What a case wants of the ratio ours / rival.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most: times.
    AtMost(f64),
    /// At least: rates.
    AtLeast(f64),
}

/// The figures of one round.
#[derive(Clone, Copy, Debug)]
pub struct Measurement {
    /// Our figure, in the case's metric.
    pub ours: f64,
    /// The rival's.
    pub rival: f64,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    case: &'static str,
    metric: &'static str,
    ours: f64,
    rival: f64,
    rival_name: &'static str,
    ratio: f64,
    goal: String,
    met: bool,
    rounds: Rounds,
}

/// The ratios of the single rounds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rounds {
    min: f64,
    median: f64,
    max: f64,
}

impl Row {
    /// The row of a case against one rival; the goal is a ratio of medians.
    pub fn new(
        case: &'static str,
        metric: &'static str,
        rival_name: &'static str,
        goal: Goal,
        rounds: &[Measurement],
    ) -> Self {
        let ours = median(rounds.iter().map(|round| round.ours));
        let rival = median(rounds.iter().map(|round| round.rival));
        let ratio = ours / rival;
        let (met, goal) = match goal {
            Goal::AtMost(most) => (ratio <= most, format!("<= {most:.2}")),
            Goal::AtLeast(least) => (ratio >= least, format!(">= {least:.2}")),
        };
        let ratios = || rounds.iter().map(|round| round.ours / round.rival);
        let rounds = Rounds {
            min: ratios().fold(f64::INFINITY, f64::min),
            median: median(ratios()),
            max: ratios().fold(f64::NEG_INFINITY, f64::max),
        };
        Self {
            case,
            metric,
            ours,
            rival,
            rival_name,
            ratio,
            goal,
            met,
            rounds,
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

/// The rows for people.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<18} {:<9} {:>11} {:>11} {:>6} {:>8} {:<6} {:<17} {}\n",
        "CASE", "METRIC", "OURS", "RIVAL", "RATIO", "GOAL", "MET", "ROUNDS", "RIVAL'S NAME"
    );
    for row in rows {
        let _ = writeln!(
            text,
            "{:<18} {:<9} {:>11.3} {:>11.3} {:>6.2} {:>8} {:<6} {:<17} {}",
            row.case,
            row.metric,
            row.ours,
            row.rival,
            row.ratio,
            row.goal,
            if row.met { "yes" } else { "no" },
            format!(
                "{:.2} {:.2} {:.2}",
                row.rounds.min, row.rounds.median, row.rounds.max
            ),
            row.rival_name
        ); // a String takes everything
    }
    text
}

/// The report with these rows in place of those of the same cases, as JSON.
pub fn merge(report: Option<&str>, rows: &[Row]) -> Result<String> {
    let mut merged: Vec<Value> = match report {
        Some(text) => serde_json::from_str(text).context("the report is not a list of rows")?,
        None => Vec::new(),
    };
    merged.retain(|old| rows.iter().all(|row| old["case"] != row.case));
    for row in rows {
        merged.push(serde_json::to_value(row)?);
    }
    Ok(serde_json::to_string_pretty(&merged)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_case_leaves_the_others_in_the_report() {
        let row = |case, ours| {
            let measurement = Measurement { ours, rival: 1.0 };
            Row::new(case, "s", "rival", Goal::AtMost(1.0), &[measurement])
        };
        let first = merge(None, &[row("a", 1.0), row("b", 1.0)]).unwrap();
        let second = merge(Some(&first), &[row("a", 2.0)]).unwrap();
        let report: Vec<Value> = serde_json::from_str(&second).unwrap();
        let figures: Vec<_> = report
            .iter()
            .map(|row| (row["case"].as_str(), row["ours"].as_f64()))
            .collect();
        assert_eq!(figures, [(Some("b"), Some(1.0)), (Some("a"), Some(2.0))]);
    }

    #[test]
    fn the_ratio_is_one_of_medians() {
        let rounds =
            [(1.0, 2.0), (3.0, 2.0), (2.0, 4.0)].map(|(ours, rival)| Measurement { ours, rival });
        let row = Row::new("case", "s", "rival", Goal::AtMost(1.0), &rounds);
        assert!((row.ratio - 1.0).abs() < 1e-9 && row.met);
        assert!((row.rounds.min - 0.5).abs() < 1e-9 && (row.rounds.max - 1.5).abs() < 1e-9);
        assert!(!Row::new("case", "keys/s", "rival", Goal::AtLeast(1.05), &rounds).met);
    }
}
