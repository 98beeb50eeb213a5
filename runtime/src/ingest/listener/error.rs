use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the listener cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// An option that cannot be meant.
    #[error("{what} is {found}, but must be {expected}")]
    Option {
        /// What it is.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would be valid.
        expected: &'static str,
    },
    /// The address is taken, or not this machine's.
    #[error(
        "cannot listen for DICOM on {address} ({source}); see what else uses the port, or choose another"
    )]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The machine gives no thread.
    #[error("cannot start a thread for the DICOM listener ({source})")]
    Thread {
        /// Why not.
        source: io::Error,
    },
    /// A file of the TLS configuration.
    #[error("{} is not usable as the listener's {what}: {problem}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// `certificate`, `key`, `client CA`.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl ListenError {
    /// Whether the configuration is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Option { .. } | Self::Bind { .. } | Self::Tls { .. } => true,
            Self::Thread { .. } => false,
        }
    }
}
