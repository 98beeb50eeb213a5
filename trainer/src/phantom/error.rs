use std::path::PathBuf;

/// Why no phantoms were made.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// There is no such suite.
    #[error("there is no suite {name:?}: give the path of a TOML file, twelve, or one of {known}")]
    UnknownSuite {
        /// What was asked for.
        name: String,
        /// The suites that are built in.
        known: String,
    },
    /// A suite says something that cannot be.
    #[error("the suite {suite} has {field} {found}, but it must be {expected}")]
    Suite {
        /// The suite's name or file.
        suite: String,
        /// The field, as in the file.
        field: String,
        /// What stands there.
        found: String,
        /// What would be valid.
        expected: String,
    },
    /// A suite file is not TOML of the right shape.
    #[error("line {line} of the suite {suite} cannot be read: {problem}")]
    Toml {
        /// The suite's name or file.
        suite: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A scan that a suite is made from is not there.
    #[error("the scan {} of the template {template} is not there; `cargo xtask assets` fetches it", path.display())]
    NoScan {
        /// The template's name.
        template: String,
        /// Where the scan should be.
        path: PathBuf,
    },
    /// A scan is not what the suite says.
    #[error("the scan {} of the template {template} has {found}, where {expected} is expected", path.display())]
    Scan {
        /// The template's name.
        template: String,
        /// The scan.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A volume cannot be read or written.
    #[error(transparent)]
    Volume(#[from] runtime::volume::VolumeError),
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl PhantomError {
    /// Whether the user's file or flag is wrong (exit code 2), rather than the machine (1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Volume(error) => error.is_bad_input(),
            Self::Io { .. } => false,
            _ => true,
        }
    }

    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
