//! Programs that no suite can do without and that are no part of the machine: downloaded once into the cache that the local Kubernetes
//! uses too.

use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

/// A release of Debian whose packages are downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebianRelease {
    /// Debian 12.
    Bookworm,
    /// Debian 13.
    Trixie,
}

impl DebianRelease {
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// A program of a package that runs with the libraries of this machine.
pub fn debian_program(release: DebianRelease, package: &str, program: &str) -> Result<PathBuf> {
    let name = format!("{package}-{}", release.name());
    let program = format!("root/usr/bin/{program}");
    installed(&name, &program, |folder| {
        download(folder, release, &[package])
    })
}

/// One at a time in this process, which downloads into one folder.
static INSTALLING: Mutex<()> = Mutex::new(());

/// The path of a program in the cache, after `install` has filled a folder with it once.
pub fn installed(
    name: &str,
    program: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join(name);
    let path = folder.join(program);
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if !path.exists() {
        // Under another name first: an interrupted download is never taken for a complete one.
        let part = cache.join(format!("downloading.{}", std::process::id()));
        fs::create_dir_all(&part)?;
        let installed = install(&part).and_then(|()| match fs::rename(&part, &folder) {
            Err(error) if !path.exists() => Err(error.into()),
            _ => Ok(()),
        });
        let _ = fs::remove_dir_all(&part);
        installed.with_context(|| format!("installing {name}"))?;
    }
    Ok(path)
}

/// Downloads packages of a release and unpacks them into the folder `root`, with a list of sources of its own: the machine's is not touched.
/// It is apt's signatures that are checked.
pub fn download(folder: &Path, release: DebianRelease, packages: &[&str]) -> Result<()> {
    for made in ["lists/partial", "archives/partial", "root"] {
        fs::create_dir_all(folder.join(made))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(
        folder.join("sources.list"),
        format!(
            "deb [signed-by={keyring}] http://deb.debian.org/debian {} main\n",
            release.name()
        ),
    )?;
    fs::write(folder.join("status"), "")?;
    let here = folder.display();
    let apt = format!(
        "-qq -o Dir::Etc::sourcelist={here}/sources.list -o Dir::Etc::sourceparts=- -o Dir::State::lists={here}/lists \
         -o Dir::State::status={here}/status -o Dir::Cache={here} -o APT::Sandbox::User=root"
    );
    run(folder, "apt-get", &format!("{apt} update"))?;
    let wanted = packages.join(" ");
    run(folder, "apt-get", &format!("{apt} download {wanted}"))?;
    for package in files(folder, "deb")? {
        run(folder, "dpkg-deb", &format!("-x {package} root"))?;
    }
    for left in ["lists", "archives"] {
        fs::remove_dir_all(folder.join(left))?;
    }
    Ok(())
}

/// Names of the files with this extension.
pub fn files(folder: &Path, extension: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            let name = path.file_name().and_then(|name| name.to_str());
            names.push(name.context("a name that is not UTF-8")?.to_owned());
        }
    }
    Ok(names)
}

/// Runs a program with arguments separated by spaces.
pub fn run(folder: &Path, program: &str, arguments: &str) -> Result<()> {
    let run = Command::new(program)
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .with_context(|| format!("running {program}"))?;
    let error = String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        bail!("{program} {arguments}: {error}");
    }
    Ok(())
}

fn cache() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let cache = base.join("redis-operator");
    fs::create_dir_all(&cache)?;
    Ok(cache)
}
