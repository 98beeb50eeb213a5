//! Files that are either old or new, never half-written.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{Result, file, machine};

/// Writes a file that everybody may read, as a web server must.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes, 0o644)
}

/// Writes a file that only its owner may read.
pub fn write_secret(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, bytes, 0o600)
}

fn write_with(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(file(folder))?;
    let mut temporary = tempfile::Builder::new().prefix(".tmp-").tempfile_in(folder).map_err(file(folder))?;
    let written = temporary
        .write_all(bytes)
        .and_then(|()| temporary.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| temporary.as_file().sync_all());
    written.map_err(file(path))?;
    temporary.persist(path).map_err(|error| machine(format!("{}: {}", path.display(), error.error)))?;
    sync_folder(folder)
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file(folder))
}

/// Reads a file, with its path in the error.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(file(path))
}

/// Reads a file that may be absent.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}
