//! What may go wrong, parted by who can mend it.

use std::fmt::Display;
use std::io;
use std::path::Path;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag, a file or a state that the operator can change; exit code 2.
    #[error("{0}")]
    Input(String),
    /// The disk, the network or the broker; exit code 1.
    #[error("{0}")]
    Machine(String),
}

/// A result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The operator can mend it; `sentence` says how.
pub fn input(sentence: impl Into<String>) -> Error {
    Error::Input(sentence.into())
}

/// The machine is at fault.
pub fn machine(sentence: impl Into<String>) -> Error {
    Error::Machine(sentence.into())
}

/// A file operation failed: a path that is not there is the operator's to mend.
pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.display().to_string();
    move |error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => {
            input(format!("{path}: {error}; check the path"))
        }
        _ => machine(format!("{path}: {error}")),
    }
}

/// A file holds something else than it should.
pub fn malformed(path: &Path, detail: impl Display, expected: &str) -> Error {
    input(format!("{} is {detail}, expected {expected}", path.display()))
}
