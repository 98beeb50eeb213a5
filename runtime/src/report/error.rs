use std::path::PathBuf;

use crate::volume::VolumeError;

/// Why a heat map or picture was not written.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The heat map's NIfTI file.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The picture could not be encoded.
    #[error("the picture {path} cannot be encoded as PNG: {source}")]
    Encode {
        /// The file that was to be written.
        path: PathBuf,
        /// What the encoder says.
        source: image::ImageError,
    },
    /// The picture could not be written.
    #[error("the picture {path} cannot be written: {source}")]
    Io {
        /// The file that was to be written.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

impl ReportError {
    /// Whether the user's path is at fault (its folder does not exist), not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Volume(error) => error.is_bad_input(),
            Self::Encode { .. } => false,
            Self::Io { source, .. } => crate::files::names_no_file(source),
        }
    }
}
