//! DICOM: one instance a file (PS3.10), one volume a series; a slice is an instance, or a frame of an enhanced one.
//!
//! A folder is read twice. The first pass reads the few attributes that place a slice ([`instance`], [`frame`]), never the
//! patient's; series are then told apart, ordered and checked ([`series`]). The second pass reads the pixels of each
//! slice straight into the volume ([`pixels`]). Memory holds the volume and the bytes of one slice.
//!
//! Data sets are walked with `dicom-parser`'s decoder rather than loaded as `dicom-object`s: lengths are then
//! checked before anything is allocated, nesting costs no stack, deflated data sets are read as they are inflated,
//! and bytes behind the pixel data, which some scanners leave, do not fail the file.
//!
//! [`syntax`] has the transfer syntaxes: uncompressed ones, RLE ([`rle`]), and the JPEG family, whose decoders are
//! kept behind a guard ([`codec`]). Of image kinds, grayscale CT, MR and the like, single-frame, and the frames of
//! enhanced ones ([`groups`]). Others are refused by name.

mod attributes;
mod codec;
mod codestream;
mod dataset;
mod fragments;
mod frame;
mod groups;
mod header;
mod instance;
mod pixels;
mod rle;
mod series;
mod syntax;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Volume, VolumeError};
pub use header::Header;
use instance::Content;

pub use instance::{FileRead, Instance, STORAGE_CLASSES};
pub use series::{Arrangement, series_digest};
pub use syntax::DECODABLE_TRANSFER_SYNTAXES;

/// Whether a file that starts like this is DICOM (PS3.10, 7.1): 128 bytes of any kind, then `DICM`.
pub(super) fn is_dicom(start: &[u8]) -> bool {
    start.get(128..132) == Some(b"DICM")
}

/// The instances of a series that was found, not yet its pixels.
pub(super) struct Series {
    origin: PathBuf,
    instances: Vec<Instance>,
    warnings: Vec<String>,
}

impl Series {
    pub(super) fn read(self) -> Result<Volume, VolumeError> {
        let mut volume = Arrangement::new(&self.origin, self.instances)?.read()?;
        volume.warnings.extend(self.warnings);
        Ok(volume)
    }
}

/// One file, as a series of its own.
pub(super) fn open_file(path: &Path) -> Result<Series, VolumeError> {
    let instances = vec![Instance::open(path)?];
    Ok(Series { origin: path.to_owned(), instances, warnings: Vec::new() })
}

/// What is not an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// The index of a medium (PS3.10, 8.6).
    Dicomdir,
    /// A report, a presentation state, …
    Document,
}

fn not_an_image(path: &Path, other: Other) -> VolumeError {
    let found = match other {
        Other::Dicomdir => "a DICOMDIR",
        Other::Document => "DICOM without an image",
    };
    VolumeError::Format { path: path.to_owned(), found: found.to_owned() }
}

/// The series among the files of a folder, not of its subfolders, sorted by Series Instance UID; at least one.
pub(super) fn open_folder(folder: &Path) -> Result<Vec<Series>, VolumeError> {
    let mut by_series: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
    let mut strangers = Skipped::default();
    let mut others = Skipped::default();
    for path in files(folder)? {
        let start = start(&path)?;
        if !is_dicom(&start) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
            if start.is_empty() || [".dcm", ".ima"].iter().any(|end| name.ends_with(end)) {
                // It was to be a slice; a volume without it would be taken for whole.
                let found = if start.is_empty() { "empty" } else { "not DICOM despite its name" };
                return Err(VolumeError::Format { path, found: found.to_owned() });
            }
            strangers.add(&path);
            continue;
        }
        match Instance::look_at(&path)? {
            Content::Image(instance) => {
                by_series.entry(instance.series_uid.clone()).or_default().push(*instance);
            }
            Content::Other(Other::Dicomdir) => {}
            Content::Other(Other::Document) => others.add(&path),
        }
    }
    if by_series.is_empty() {
        let found = "a folder without a DICOM image (subfolders are not searched)".to_owned();
        return Err(VolumeError::Format { path: folder.to_owned(), found });
    }
    let warnings: Vec<String> = [strangers.warning("not DICOM"), others.warning("DICOM without an image")]
        .into_iter()
        .flatten()
        .collect();
    let series = |instances| Series { origin: folder.to_owned(), instances, warnings: warnings.clone() };
    Ok(by_series.into_values().map(series).collect())
}

/// The regular files of a folder, sorted by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>, VolumeError> {
    let io = |source| VolumeError::io(folder, source);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        // Through links, and past pipes and sockets, which would block.
        if std::fs::metadata(&path).map_err(|source| VolumeError::io(&path, source))?.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn start(path: &Path) -> Result<Vec<u8>, VolumeError> {
    let io = |source| VolumeError::io(path, source);
    let mut start = Vec::with_capacity(132);
    File::open(path).map_err(io)?.take(132).read_to_end(&mut start).map_err(io)?;
    Ok(start)
}

/// A file's name without its folder, for messages about several files.
fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// How many files were passed over, and the first of them.
#[derive(Default)]
struct Skipped {
    count: usize,
    first: String,
}

impl Skipped {
    fn add(&mut self, path: &Path) {
        if self.count == 0 {
            self.first = name(path);
        }
        self.count += 1;
    }

    fn warning(&self, what: &str) -> Option<String> {
        match self.count {
            0 => None,
            1 => Some(format!("one file is {what} and was skipped: {}", self.first)),
            n => Some(format!("{n} files are {what} and were skipped, the first is {}", self.first)),
        }
    }
}

#[cfg(test)]
mod tests;
