//! A change of several files that is made whole or not at all.
//!
//! The new files are laid down beside the repository's, the folder they lie in is renamed, which decides, and only then do they go to
//! their places. A command that finds such a folder finishes what was begun. Nothing in it is trusted: opening verifies what it became.

use std::fs;
use std::path::Path;

use crate::error::{Result, file};
use crate::files;

const PENDING: &str = ".pending";

/// Puts metadata files into place, in this order, `timestamp.json` last.
pub fn commit(folder: &Path, new: &[(String, Vec<u8>)]) -> Result<()> {
    let draft = folder.join(".draft");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(file(&draft))?;
    }
    for (n, (name, bytes)) in new.iter().enumerate() {
        files::write(&draft.join(format!("{n:04}-{name}")), bytes)?;
    }
    let pending = folder.join(PENDING);
    fs::rename(&draft, &pending).map_err(file(&pending))?;
    files::sync_folder(folder)?;
    finish(folder)
}

/// Finishes a change that was decided on and interrupted.
pub fn finish(folder: &Path) -> Result<()> {
    let pending = folder.join(PENDING);
    if !pending.exists() {
        return Ok(());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(&pending).map_err(file(&pending))? {
        names.push(entry.map_err(file(&pending))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        let place = name.split_once('-').map_or(name.as_str(), |(_, place)| place);
        files::write(&folder.join("metadata").join(place), &files::read(&pending.join(name))?)?;
    }
    fs::remove_dir_all(&pending).map_err(file(&pending))?;
    files::sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_decided_is_finished_and_what_was_not_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let content = |name: &str| fs::read_to_string(at("metadata").join(name)).unwrap_or_default();
        let change = |text: &str| {
            [("2.root.json", text), ("timestamp.json", text)]
                .map(|(n, t)| (n.to_owned(), t.as_bytes().to_vec()))
        };
        commit(folder.path(), &change("one")).unwrap();
        assert_eq!((content("2.root.json"), content("timestamp.json")), ("one".into(), "one".into()));

        // Cut off before the decision.
        files::write(&at(".draft/0000-2.root.json"), b"two").unwrap();
        finish(folder.path()).unwrap();
        assert_eq!(content("2.root.json"), "one");
        // Cut off after it, with half of the files in place.
        fs::rename(at(".draft"), at(PENDING)).unwrap();
        files::write(&at(".pending/0001-timestamp.json"), b"two").unwrap();
        files::write(&at("metadata/2.root.json"), b"two").unwrap();
        finish(folder.path()).unwrap();
        assert_eq!((content("2.root.json"), content("timestamp.json")), ("two".into(), "two".into()));
        assert!(!at(PENDING).exists() && !at(".draft").exists());
    }
}
