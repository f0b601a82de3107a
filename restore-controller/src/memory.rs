//! The memory that this process may use.

use std::{fs, path::Path};

/// Where the kernel says the limit of the process's control group: version 2, version 1.
const FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

/// The limit of the container in bytes; `None` where it has none.
pub fn container_limit() -> Option<usize> {
    limit_in(&FILES)
}

/// The first of these files that there is decides.
fn limit_in<P: AsRef<Path>>(files: &[P]) -> Option<usize> {
    let mut texts = files.iter();
    parse(&texts.find_map(|file| fs::read_to_string(file).ok())?)
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
    fn the_limit_is_that_of_the_version_in_use() {
        let folder = std::env::temp_dir().join(format!("cgroup-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [two, one] = ["memory.max", "memory.limit_in_bytes"].map(|name| folder.join(name));
        let limit = || limit_in(&[&two, &one]);
        assert_eq!(limit(), None);
        fs::write(&one, "268435456\n").unwrap();
        assert_eq!(limit(), Some(256 << 20));
        fs::write(&two, "max\n").unwrap();
        assert_eq!(limit(), None);
        fs::write(&two, "536870912\n").unwrap();
        assert_eq!(limit(), Some(512 << 20));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Whatever this machine says, it is a number that a process can have, or none.
    #[test]
    fn the_limit_of_this_process_is_read() {
        let limit = container_limit();
        assert!(limit.is_none_or(|bytes| bytes > 1 << 20), "{limit:?}");
    }

    #[test]
    fn both_versions_of_control_groups_are_read() {
        assert_eq!(parse("1073741824\n"), Some(1 << 30));
        assert_eq!(parse("max\n"), None);
        assert_eq!(parse("9223372036854771712\n"), None);
        assert_eq!(parse(""), None);
    }
}
