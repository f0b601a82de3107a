//! The memory that this process may use.

use std::fs;

/// Where the kernel says the limit of the process's control group: version 2, version 1.
const FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// The limit of the container in bytes; `None` where it has none.
pub fn container_limit() -> Option<usize> {
    let text = FILES
        .iter()
        .find_map(|file| fs::read_to_string(file).ok())?;
    parse(&text)
}

/// `max` (version 2) and a number beyond any machine (version 1) mean no limit.
fn parse(text: &str) -> Option<usize> {
    let bytes: usize = text.trim().parse().ok()?;
    (bytes < 1 << 60).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_control_groups_are_read() {
        assert_eq!(parse("1073741824\n"), Some(1 << 30));
        assert_eq!(parse("max\n"), None);
        assert_eq!(parse("9223372036854771712\n"), None);
        assert_eq!(parse(""), None);
    }
}
