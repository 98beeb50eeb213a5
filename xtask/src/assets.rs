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
    let parts =
        asset.parts.iter().map(|part| format!("{}\n  {}\n  {:?}", part.source, part.sha256, part.take));
    parts.collect::<Vec<_>>().join("\n")
}

fn make(asset: &Asset, place: &Path) -> Result<()> {
    let beside = |suffix: &str| {
        place.with_file_name(format!(".{}.{suffix}", place.file_name().unwrap_or_default().to_string_lossy()))
    };
    let (fresh, scratch, stale) = (beside("new"), beside("download"), beside("old"));
    for left in [&fresh, &scratch, &stale] {
        if left.exists() {
            fs::remove_dir_all(left)?;
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
        fs::rename(place, &stale)?;
        fs::rename(&fresh, place)?;
        fs::remove_dir_all(&stale)?;
    } else {
        fs::rename(&fresh, place)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder as a Debian package's files would lie, and the part that takes two of them.
    fn files(sha256: &'static str) -> (tempfile::TempDir, Part) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("usr/share/a/one.txt", "1"), ("usr/share/a/deep/two.txt", "2"), ("usr/share/three.md", "3")]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let source = Source::Apt { package: "sample", archive: None };
        (folder, Part { source, bytes: 0, sha256, take: &[("usr/share/a/*.txt", "to"), ("*.md", ".")] })
    }

    #[test]
    fn wanted_files_are_taken_below_their_pattern() {
        let (archive, part) = files("any");
        let dest = tempfile::tempdir().unwrap();
        unpack(&part, archive.path(), dest.path()).unwrap();
        let read = |name: &str| fs::read_to_string(dest.path().join(name)).unwrap();
        assert_eq!([read("to/one.txt"), read("to/deep/two.txt"), read("three.md")], ["1", "2", "3"]);
    }

    #[test]
    fn another_content_is_refused() {
        let (archive, part) = files("0000");
        let dest = tempfile::tempdir().unwrap();
        let error = format!("{:#}", unpack(&part, archive.path(), dest.path()).unwrap_err());
        assert!(error.contains("sample") && error.contains("expected 0000"), "{error}");
    }

    #[test]
    fn a_file_with_another_hash_is_refused_before_it_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.whl");
        fs::write(&archive, "not what was published").unwrap();
        let source = Source::Pip { package: "sample", version: "1", platform: "any" };
        let part = Part { source, bytes: 0, sha256: "0000", take: &[("*", ".")] };
        let error = format!("{:#}", unpack(&part, &archive, &folder.path().join("to")).unwrap_err());
        assert!(error.contains("a.whl has SHA-256") && !folder.path().join("to").exists(), "{error}");
    }

    #[test]
    fn names_and_hashes_of_the_table_are_whole() {
        let mut names = std::collections::BTreeSet::new();
        for asset in ASSETS {
            assert!(names.insert(asset.name), "{} stands twice", asset.name);
            for part in asset.parts {
                assert!(part.sha256 == "any" || part.sha256.len() == 64, "{}", part.source);
                assert!(!part.take.is_empty() && part.bytes > 0, "{}", part.source);
            }
        }
    }

    #[test]
    fn a_changed_definition_is_another_stamp() {
        let stamps: std::collections::BTreeSet<String> = ASSETS.iter().map(stamp).collect();
        assert_eq!(stamps.len(), ASSETS.len());
    }
}
