//! Processor time that programs of this machine have used, by their names or numbers.

use anyhow::{Context, Result, ensure};
use std::{fs, time::Duration};

/// Ticks a second in `/proc/PID/stat`: `USER_HZ`, which is 100 on every architecture that the suites run on.
const TICKS: u64 = 100;
/// Where `utime` is in `/proc/PID/stat`, counted from the field after the name; `stime`, `cutime` and `cstime` follow.
const FIRST_TIME: usize = 11;

/// The time that all processes of these names have used, together with children of theirs that have ended: what runs for a moment, as
/// the program of a probe does, is counted by its parent. Names end after 15 characters, as the kernel cuts them.
pub fn used_by(names: &[&str]) -> Result<Duration> {
    let (mut ticks, mut found) = (0, false);
    for entry in fs::read_dir("/proc")? {
        // A process that has ended since is counted by its parent.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else {
            continue;
        };
        let (name, time) = parse(&stat).with_context(|| format!("not a stat: {stat}"))?;
        if names.contains(&name) {
            ticks += time;
            found = true;
        }
    }
    ensure!(found, "no process of this machine is one of {names:?}");
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The time that a process has used.
pub fn used_by_process(process: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, ticks) = parse(&stat).with_context(|| format!("not a stat: {stat}"))?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS))
}

/// Name and ticks. The name stands in parentheses, and may hold any character itself.
fn parse(stat: &str) -> Option<(&str, u64)> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once(" (")?;
    let times = rest.split(' ').skip(FIRST_TIME).take(4);
    let times = times.map(|field| field.parse::<u64>().ok());
    Some((name, times.sum::<Option<u64>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_counts_with_its_ended_children() {
        let stat = "12 (a (b) c) S 1 12 12 0 -1 4194560 1 2 3 4 100 20 3000 400 20 0 1 0";
        assert_eq!(parse(stat), Some(("a (b) c", 3520)));
    }
}
