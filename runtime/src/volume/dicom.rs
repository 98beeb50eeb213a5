//! DICOM: one instance a file (PS3.10), one slice an instance, one volume a series.
//!
//! A folder is read twice. The first pass reads the few attributes that place a slice ([`instance`]), never the
//! patient's; series are then told apart, ordered and checked ([`series`]). The second pass reads the pixels of each
//! slice straight into the volume ([`pixels`]). Memory holds the volume and the bytes of one slice.
//!
//! Data sets are walked with `dicom-parser`'s decoder rather than loaded as `dicom-object`s: lengths are then
//! checked before anything is allocated, nesting costs no stack, deflated data sets are read as they are inflated,
//! and bytes behind the pixel data, which some scanners leave, do not fail the file.
//!
//! Transfer syntaxes: implicit and explicit little endian, explicit big endian, deflated, RLE lossless. Of image
//! kinds, single-frame grayscale. Others are refused by name.

mod dataset;
mod header;
mod instance;
mod pixels;
mod rle;
mod series;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use dicom_dictionary_std::uids;

use super::{Volume, VolumeError};
pub use header::Header;
use instance::{Content, Instance, Other};

/// Transfer syntaxes of which the pixels can be read (PS3.6, A): what a listener may negotiate for images.
///
/// Every other one is refused by name.
pub const DECODABLE_TRANSFER_SYNTAXES: &[&str] = &[
    uids::EXPLICIT_VR_LITTLE_ENDIAN,
    uids::IMPLICIT_VR_LITTLE_ENDIAN,
    uids::DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    dataset::EXPLICIT_BIG,
    uids::RLE_LOSSLESS,
];

/// Storage SOP classes that are read as slices (PS3.4, B.5): what a listener may accept.
pub const STORAGE_CLASSES: &[&str] =
    &[uids::CT_IMAGE_STORAGE, uids::MR_IMAGE_STORAGE, uids::POSITRON_EMISSION_TOMOGRAPHY_IMAGE_STORAGE];

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
        let mut volume = series::assemble(&self.origin, self.instances)?;
        volume.warnings.extend(self.warnings);
        Ok(volume)
    }
}

/// One file, as a series of one slice.
pub(super) fn open_file(path: &Path) -> Result<Series, VolumeError> {
    match Instance::read(path)? {
        Content::Image(instance) => {
            Ok(Series { origin: path.to_owned(), instances: vec![*instance], warnings: Vec::new() })
        }
        Content::Other(other) => {
            let found = match other {
                Other::Dicomdir => "a DICOMDIR",
                Other::Document => "DICOM without an image",
            };
            Err(VolumeError::Format { path: path.to_owned(), found: found.to_owned() })
        }
    }
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
        match Instance::read(&path)? {
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
