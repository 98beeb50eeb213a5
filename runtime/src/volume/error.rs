//! Why a volume was not read or written.

use std::io;
use std::path::{Path, PathBuf};

/// Why a volume was not read or written; each message is one sentence.
///
/// Messages carry file names, field names and numbers, never what a file says about the patient.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The file system failed, or the file is not there.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file system failed while writing.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is not enough memory.
    #[error("{} needs {bytes} bytes of memory for its voxels, which are not to be had", path.display())]
    Memory {
        /// What was to be read.
        path: PathBuf,
        /// How much was asked for.
        bytes: usize,
    },
    /// Neither NIfTI nor DICOM.
    #[error("{} is {found}, expected a .nii, .nii.gz or DICOM file or a folder with a DICOM series", path.display())]
    Format {
        /// The file or folder.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// A kind of data that is not read.
    #[error("{} holds {found}, which is not read; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The kind of data, by the name that its format has for it.
        found: String,
        /// What to do instead.
        instead: String,
    },
    /// A field has a value that makes no sense.
    #[error("{}: {field} is {found}, expected {expected}", path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// The field by its name in the format.
        field: String,
        /// Its value.
        found: String,
        /// What would make sense.
        expected: String,
    },
    /// A DICOM attribute is missing or empty.
    #[error("{} lacks {keyword} ({:04X},{:04X}), without which it cannot be read", path.display(), tag.0, tag.1)]
    Missing {
        /// The file.
        path: PathBuf,
        /// The attribute's keyword (PS3.6).
        keyword: &'static str,
        /// Group and element.
        tag: (u16, u16),
    },
    /// The file ends too early.
    #[error("{} is truncated: its {what} has {found} of {expected} bytes; get the file again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What ends too early.
        what: &'static str,
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be there.
        expected: u64,
    },
    /// The file cannot be decoded.
    #[error("{} is damaged: {problem}; get the file again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not hold.
        problem: String,
    },
    /// A size beyond what is read.
    #[error("{}: {what} is {found}, more than the {limit} that are read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// What is too large.
        what: String,
        /// How large it is.
        found: u128,
        /// The most that is read.
        limit: u64,
    },
    /// Voxels that are not numbers.
    #[error("{}: {count} voxels are NaN or infinite, the first at index {first:?}; replace them by numbers", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// How many.
        count: u64,
        /// Stored index `[i, j, k]` of the first.
        first: [usize; 3],
    },
    /// Left and right cannot be told.
    #[error("{}: {problem}; say how its voxels lie with --assume-orientation, for example RAS", path.display())]
    Orientation {
        /// The file.
        path: PathBuf,
        /// What is missing or contradictory.
        problem: String,
    },
    /// Axes that are not at right angles, or a voxel size of nothing.
    #[error("{}: {problem}; resample the scan to a grid with right angles", path.display())]
    Geometry {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A 4D file, and no word or a wrong one on which volume is meant.
    #[error("{} holds {volumes} volumes, say which one with --volume-index, 0 to {}", path.display(), volumes - 1)]
    WhichVolume {
        /// The file.
        path: PathBuf,
        /// How many there are, at least 1.
        volumes: u64,
    },
    /// The instances of a series do not make up one volume.
    #[error("the series in {} is no single volume: {problem}", path.display())]
    Series {
        /// The folder or file.
        path: PathBuf,
        /// What does not fit, naming files.
        problem: String,
    },
}

impl VolumeError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn field(
        path: &Path,
        field: impl Into<String>,
        found: impl std::fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Field {
            path: path.to_owned(),
            field: field.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// Whether the user's file or flag is wrong, rather than the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Write { source, .. } => crate::files::names_no_file(source),
            Self::Memory { .. } => false,
            _ => true,
        }
    }
}
