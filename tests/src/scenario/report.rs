//! The table of `make scenarios`: a row for each thing that was done to a cluster, appended to a file of JSON lines as soon as it is
//! known, and rendered when all suites have ended (`bin/scenario-report`).

use super::Writes;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::{
    env,
    fmt::{self, Display, Formatter, Write as _},
    fs::File,
    io::Write as _,
    path::Path,
    time::Duration,
};

/// Names the file that rows are appended to. Without it they are only printed.
pub const REPORT_VARIABLE: &str = "SCENARIO_REPORT";

/// Where the table stands in a document.
const BEGIN: &str = "<!-- scenarios: begin (make scenarios-readme) -->";
const END: &str = "<!-- scenarios: end -->";

/// What the table says of a goal.
pub fn met(is_met: bool) -> &'static str {
    if is_met { "met" } else { "missed" }
}

/// What a scenario is about. The table is in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Area {
    /// A scenario that failed.
    Failed,
    /// A cluster is formed.
    Forming,
    /// Pods, containers and their addresses are lost.
    Pods,
    /// Volumes and files are lost or kept.
    Volumes,
    /// The majority of the primaries is lost.
    Majority,
    /// Kubernetes nodes are lost, and where pods are placed.
    Nodes,
    /// The spec changes.
    Change,
    /// Who may log in changes.
    Users,
    /// The size changes.
    Size,
    /// Controllers end or are missing.
    Controllers,
    /// What an idle cluster costs.
    Cost,
}

impl Display for Area {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "FAILED",
            Self::Forming => "forming",
            Self::Pods => "pods",
            Self::Volumes => "volumes",
            Self::Majority => "majority",
            Self::Nodes => "Kubernetes nodes",
            Self::Change => "change",
            Self::Users => "users",
            Self::Size => "size",
            Self::Controllers => "controllers",
            Self::Cost => "cost",
        })
    }
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ScenarioRow {
    area: Area,
    scenario: String,
    /// What was done to the cluster.
    done: String,
    /// Seconds until the cluster was healthy by the report of its nodes, or until what the note says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    /// Keys of the data set and acknowledged writes that were not found afterwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keys_lost: Option<u64>,
    /// Attempts of the writer that were refused or not answered; it tries again at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writes_refused: Option<u64>,
    /// Seconds between two acknowledged writes, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longest_gap: Option<f64>,
    /// Other figures, and what was asked of them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
}

impl ScenarioRow {
    /// A row without figures.
    pub fn new(area: Area, scenario: &str, done: &str) -> Self {
        Self {
            area,
            scenario: scenario.to_owned(),
            done: done.to_owned(),
            seconds: None,
            keys_lost: None,
            writes_refused: None,
            longest_gap: None,
            note: String::new(),
        }
    }

    /// The time until the cluster was healthy.
    #[must_use]
    pub fn healthy_after(mut self, time: Duration) -> Self {
        self.seconds = Some(time.as_secs_f64());
        self
    }

    /// Keys that were missing when the whole data set was compared.
    #[must_use]
    pub fn lost(mut self, keys: u64) -> Self {
        self.keys_lost = Some(self.keys_lost.unwrap_or_default() + keys);
        self
    }

    /// What a writer saw meanwhile.
    #[must_use]
    pub fn writes(mut self, writes: &Writes) -> Self {
        self.writes_refused = Some(writes.refused());
        self.longest_gap = Some(writes.longest_gap.as_secs_f64());
        self.lost(writes.acknowledged.saturating_sub(writes.found))
    }

    /// Another figure, and what was asked of it.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Prints the row and appends it to the file of the run, if there is one. A line is one write to a file that is open for appending, so
    /// lines of several processes do not mix.
    pub fn record(&self) -> Result<()> {
        println!("{}", self.cells().join(" | "));
        let Some(path) = env::var_os(REPORT_VARIABLE) else {
            return Ok(());
        };
        self.append(Path::new(&path))
    }

    fn append(&self, path: &Path) -> Result<()> {
        let line = serde_json::to_string(self)? + "\n";
        let named = || format!("{}, the file of {REPORT_VARIABLE}", path.display());
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(named)?;
        file.write_all(line.as_bytes()).with_context(named)
    }

    fn cells(&self) -> [String; 8] {
        let seconds = |time: Option<f64>, digits| {
            time.map_or_else(String::new, |time| format!("{time:.digits$}"))
        };
        let count =
            |number: Option<u64>| number.map_or_else(String::new, |number| number.to_string());
        [
            self.area.to_string(),
            self.scenario.clone(),
            self.done.clone(),
            seconds(self.seconds, 1),
            count(self.keys_lost),
            count(self.writes_refused),
            seconds(self.longest_gap, 2),
            self.note.clone(),
        ]
    }
}

/// The rows of a file of JSON lines, area by area.
pub fn rows(lines: &str) -> Result<Vec<ScenarioRow>> {
    let rows = lines.lines().filter(|line| !line.trim().is_empty());
    let rows = rows.map(|line| serde_json::from_str(line).with_context(|| format!("row {line}")));
    let mut rows: Vec<ScenarioRow> = rows.collect::<Result<_>>()?;
    rows.sort_by_key(|row| row.area);
    Ok(rows)
}

/// The rows as a table of Markdown.
pub fn markdown(rows: &[ScenarioRow]) -> String {
    let mut text = "| area | scenario | what was done | seconds until healthy | keys lost | writes refused | longest gap, s | note |\n\
                    |---|---|---|--:|--:|--:|--:|---|\n"
        .to_owned();
    for row in rows {
        // A cell must not end its row.
        let cells = row
            .cells()
            .map(|cell| cell.replace('|', "/").replace('\n', " "));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text
}

/// A document with this table between its markers.
pub fn replaced(document: &str, table: &str) -> Result<String> {
    let missing = || format!("the document has no lines {BEGIN} and {END}");
    let (head, rest) = document.split_once(BEGIN).with_context(missing)?;
    let (_, tail) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{head}{BEGIN}\n{table}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(area: Area, scenario: &str) -> ScenarioRow {
        let writes = Writes {
            acknowledged: 100,
            refusals: [("CLUSTERDOWN".to_owned(), 4), ("connection".to_owned(), 3)].into(),
            longest_gap: Duration::from_millis(1500),
            found: 98,
        };
        ScenarioRow::new(area, scenario, "deleted | killed")
            .healthy_after(Duration::from_millis(2340))
            .lost(1)
            .writes(&writes)
            .note("goal 3 s")
    }

    #[test]
    fn appended_rows_are_read_area_by_area() {
        let file = env::temp_dir().join(format!("scenario-rows-{}", std::process::id()));
        for written in [row(Area::Size, "b"), row(Area::Pods, "a")] {
            written.append(&file).unwrap();
        }
        let read = rows(&std::fs::read_to_string(&file).unwrap()).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read, [row(Area::Pods, "a"), row(Area::Size, "b")]);
    }

    #[test]
    fn lost_writes_count_as_lost_keys() {
        let table = markdown(&[row(Area::Pods, "a"), ScenarioRow::new(Area::Cost, "b", "c")]);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| pods | a | deleted / killed | 2.3 | 3 | 7 | 1.50 | goal 3 s |",
                "| cost | b | c |  |  |  |  |  |"
            ]
        );
    }

    #[test]
    fn the_table_replaces_what_is_between_the_markers() {
        let document = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replaced(&document, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\nnew\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "new\n").unwrap(), once);
        assert!(replaced("no markers", "new\n").is_err());
    }
}
