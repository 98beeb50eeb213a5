//! What ends a command early.

use std::path::{Path, PathBuf};

use runtime::backbone::BackboneError;
use runtime::engine::EngineError;
use runtime::graph::GraphError;
use runtime::plugin::PluginError;
use runtime::publish::PublishError;
use runtime::report::ReportError;
use runtime::service::ServiceError;
use runtime::tensor::TensorError;
use runtime::update::UpdateError;
use runtime::volume::VolumeError;

/// What ends a command early; each message is one sentence, and each knows whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The library's word.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The service's word.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The arguments ask for something that cannot be, in a way that clap cannot see.
    #[error("{0}")]
    Usage(String),
    /// A file of the user's, other than scans, plugins and graphs, cannot be used.
    #[error("{} {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, as the rest of a sentence.
        problem: String,
    },
    /// The machine failed at a file.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was to be done, as a verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Some series of a folder could not be used; each was told when it was its turn.
    #[error(
        "{refused} of the {all} series were not classified, for the reasons given above; the others were"
    )]
    Series {
        /// Series without a result.
        refused: usize,
        /// Series in all.
        all: usize,
    },
    /// A check's answer is no.
    #[error("{0}")]
    Differs(String),
    /// stdout cannot be written to.
    #[error("cannot write to standard output: {0}")]
    Stdout(std::io::Error),
}

macro_rules! from_modules {
    ($($error:ty),*) => {
        $(impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Runtime(error.into())
            }
        })*
    };
}
from_modules!(
    BackboneError,
    EngineError,
    GraphError,
    PluginError,
    PublishError,
    ReportError,
    TensorError,
    UpdateError,
    VolumeError
);

impl Fault {
    /// Writing `path` failed.
    pub fn write(path: &Path, source: std::io::Error) -> Self {
        Self::Io { what: "write", path: path.into(), source }
    }

    /// The message on one line, whatever a library said.
    pub fn sentence(&self) -> String {
        self.to_string().replace(['\n', '\r'], " ")
    }

    /// Whether the user's file or flag is at fault (exit code 2), not the machine (exit code 1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Runtime(error) => error.is_bad_input(),
            Self::Service(error) => error.is_bad_input(),
            Self::Usage(_) | Self::File { .. } | Self::Series { .. } => true,
            Self::Io { source, .. } => runtime::files::names_no_file(source),
            Self::Differs(_) | Self::Stdout(_) => false,
        }
    }
}
