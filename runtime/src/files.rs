//! Files that are either old or new, never half-written.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::Disk;

/// Whether the path was wrong, rather than the machine: there is no such file or folder, or one stands in the other's place.
pub fn names_no_file(error: &io::Error) -> bool {
    use io::ErrorKind::{IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | IsADirectory | NotADirectory)
}

/// Writes `bytes` to `path` so that a power cut at any instant leaves the old file or the new one: a temporary file in the
/// same folder, synced, renamed over `path`, and the folder synced.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically_with(path, |file| file.write_all(bytes))
}

/// As [`write_atomically`], on any disk. The temporary file is `path` with `.new` after it: only one at a time may write to
/// `path`, and what a power cut left there is replaced.
pub fn write_atomically_on(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    if disk.length(&new)?.is_some() {
        disk.remove(&new)?;
    }
    let written = disk.create(&new).and_then(|file| {
        file.write_at(0, bytes)?;
        file.sync()
    });
    if let Err(error) = written.and_then(|()| disk.rename(&new, path)) {
        // It is replaced the next time in any case.
        let _ = disk.remove(&new);
        return Err(error);
    }
    disk.sync_folder(parent(path))
}

/// Makes a folder and those above it that are missing, each name durable. From `ours` down names are made durable also where
/// the folders were there: whoever made them may have ended before they were.
pub fn create_folders_on(disk: &dyn Disk, path: &Path, ours: &Path) -> io::Result<()> {
    let is_ours = path.starts_with(ours);
    if is_ours && path != ours {
        create_folders_on(disk, parent(path), ours)?;
    }
    let made = match disk.create_folder(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && parent(path) != path => {
            create_folders_on(disk, parent(path), ours)?;
            disk.create_folder(path)?
        }
        other => other?,
    };
    if made || is_ours { disk.sync_folder(parent(path)) } else { Ok(()) }
}

/// The folder in which a file or folder lies.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// As [`write_atomically`], with the content written by `write`.
pub fn write_atomically_with(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let folder = parent(path);
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder)?;
    write(file.as_file_mut())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; what is put in place may be read by those who could read it otherwise.
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644))?;
    }
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}
