//! Files that `infer` writes beside its result.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use runtime::files::write_atomically_with;
use runtime::infer::Classification;

use super::Fault;

/// Refuses, before any work is done, an output whose name has the wrong ending or whose folder is not there.
pub fn check(flag: &str, path: &Path, endings: &[&str]) -> Result<(), Fault> {
    let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    if !endings.iter().any(|ending| name.ends_with(ending)) {
        let (path, endings) = (path.display(), endings.join(" or "));
        return Err(Fault::Usage(format!("{flag} {path}: the name must end with {endings}")));
    }
    check_folder(flag, path)
}

/// Refuses an output whose folder is not there, or which is a folder itself.
pub fn check_folder(flag: &str, path: &Path) -> Result<(), Fault> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        return Err(Fault::Usage(format!("{flag} {path}: there is no folder {folder}; make it first")));
    }
    if path.is_dir() {
        return Err(Fault::Usage(format!("{flag} {} is a folder; give a file", path.display())));
    }
    Ok(())
}

/// Sees slices as they are prepared, in any order and from any thread.
pub type Observe<'a> = &'a (dyn Fn(usize, &[f32]) + Sync);

/// Runs `work`, writing the slices that it prepares to `path` as NumPy's `.npy` (version 1.0), f32 `[S, 3, H, W]`: each slice
/// goes to its place as it comes, so that they are never all held. Nothing is left under `path` if anything fails.
pub fn with_slices(
    path: &Path,
    slices: usize,
    size: [usize; 2],
    work: impl FnOnce(Observe<'_>) -> Result<Classification, runtime::Error>,
) -> Result<Classification, Fault> {
    let mut done = None;
    let written = write_atomically_with(path, |file| {
        let header = npy_header([slices, 3, size[0], size[1]]);
        file.write_all(&header)?;
        let failure = Mutex::new(None);
        let lock = || failure.lock().unwrap_or_else(PoisonError::into_inner);
        let observe = |s: usize, slice: &[f32]| {
            let at = header.len() as u64 + (s as u64) * 4 * slice.len() as u64;
            if let Err(error) = write_f32(file, at, slice) {
                *lock() = Some(error);
            }
        };
        let outcome = work(&observe);
        let error = lock().take();
        let failed = outcome.is_err();
        done = Some(outcome);
        match error {
            Some(error) => Err(error),
            None if failed => Err(io::ErrorKind::Interrupted.into()),
            None => Ok(()),
        }
    });
    match (done, written) {
        (Some(Err(error)), _) => Err(error.into()),
        (Some(Ok(classification)), Ok(())) => Ok(classification),
        (_, Err(source)) => Err(Fault::write(path, source)),
        (None, Ok(())) => Err(Fault::write(path, io::ErrorKind::Interrupted.into())),
    }
}

fn write_f32(file: &File, mut at: u64, values: &[f32]) -> io::Result<()> {
    let mut block = Vec::with_capacity(1 << 16);
    for part in values.chunks(1 << 14) {
        block.clear();
        block.extend(part.iter().flat_map(|value| value.to_le_bytes()));
        file.write_all_at(&block, at)?;
        at += block.len() as u64;
    }
    Ok(())
}

/// Magic, version and dictionary, padded with spaces so that the data begins at a multiple of 64 bytes.
fn npy_header(shape: [usize; 4]) -> Vec<u8> {
    let [s, c, h, w] = shape;
    let dictionary = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({s}, {c}, {h}, {w}), }}");
    let fixed = 10;
    let length = (fixed + dictionary.len() + 1).next_multiple_of(64) - fixed;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((length as u16).to_le_bytes());
    header.extend(dictionary.bytes());
    header.resize(fixed + length - 1, b' ');
    header.push(b'\n');
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_npy_header_is_padded_and_counts_itself() {
        for shape in [[1, 3, 14, 14], [12345, 3, 4096, 4096]] {
            let header = npy_header(shape);
            assert_eq!(header.len() % 64, 0);
            assert_eq!(usize::from(header[8]) + 256 * usize::from(header[9]) + 10, header.len());
            assert_eq!(header.last(), Some(&b'\n'));
        }
    }
}
