//! DICOM series.

use std::path::Path;

use super::{Volume, VolumeError};

/// Whether a file that starts like this is DICOM (PS3.10, 7.1): 128 bytes of any kind, then `DICM`.
pub(super) fn is_dicom(start: &[u8]) -> bool {
    start.get(128..132) == Some(b"DICM")
}

pub(super) fn read_file(path: &Path) -> Result<Vec<Volume>, VolumeError> {
    Err(VolumeError::Unsupported {
        path: path.to_owned(),
        found: "DICOM".to_owned(),
        instead: "convert it to NIfTI".to_owned(),
    })
}

pub(super) fn read_folder(path: &Path) -> Result<Vec<Volume>, VolumeError> {
    read_file(path)
}
