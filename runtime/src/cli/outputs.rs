//! Files that `infer` writes beside its result.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use runtime::files::write_atomically_with;
use runtime::recipe::Prepared;

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

/// The name of an output for one of a task's views: `-VIEW` before the ending.
pub fn of_view(path: &Path, view: Option<&str>, endings: &[&str]) -> PathBuf {
    let (Some(view), Some(name)) = (view, path.file_name()) else { return path.to_owned() };
    let name = name.to_string_lossy();
    let ending = endings.iter().find(|ending| name.to_lowercase().ends_with(**ending)).map_or(0, |e| e.len());
    let (stem, ending) = name.split_at(name.len() - ending);
    path.with_file_name(format!("{stem}-{view}{ending}"))
}

/// Writes the slices that the network was given as NumPy's `.npy` (version 1.0), f32 `[S, 3, H, W]`, prepared one by one once more,
/// so that they are never all held.
pub fn write_slices(path: &Path, prepared: &Prepared<'_>) -> Result<(), Fault> {
    let [h, w] = prepared.size();
    let written = write_atomically_with(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(&npy_header([prepared.slices(), 3, h, w]))?;
        let mut slice = vec![0.0; 3 * h * w];
        for s in 0..prepared.slices() {
            prepared.write_slice(s, &mut slice);
            for value in &slice {
                file.write_all(&value.to_le_bytes())?;
            }
        }
        file.flush()
    });
    written.map_err(|source| Fault::write(path, source))
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
    fn a_views_name_stands_before_the_ending() {
        let of = |name: &str, view| of_view(Path::new(name), view, &[".nii.gz", ".nii"]);
        assert_eq!(of("out/heat.map.nii.gz", Some("t1")), Path::new("out/heat.map-t1.nii.gz"));
        assert_eq!(of("heat.NII", Some("t1")), Path::new("heat-t1.NII"));
        assert_eq!(of("heat.nii", None), Path::new("heat.nii"));
    }

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
