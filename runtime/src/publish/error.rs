use std::fmt;
use std::path::PathBuf;

use firmware_config::Broker;

use super::MAX_PAYLOAD;

/// Why messages were not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A certificate, key or password file cannot be used.
    #[error("{} {problem}", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is expected, as the rest of a sentence.
        problem: String,
    },
    /// TLS needs to know whose certificates to trust.
    #[error(
        "the broker {broker} is reached by TLS, which needs the file of the authority that its certificate comes from"
    )]
    NoAuthority {
        /// The broker.
        broker: Broker,
    },
    /// A message is too large.
    #[error("the message for {topic} has {bytes} bytes, expected at most {MAX_PAYLOAD}")]
    TooLarge {
        /// Its topic.
        topic: String,
        /// Its payload.
        bytes: usize,
    },
    /// The broker does not want this client, or a message of it.
    #[error("the broker {broker} refused ({reason}); see its log and access rules")]
    Refused {
        /// The broker.
        broker: Broker,
        /// The reason code's name.
        reason: String,
    },
    /// The broker is not who it should be.
    #[error(
        "the certificate of the broker {broker} is not to be trusted ({reason}); check the authority's file and the broker's name"
    )]
    Untrusted {
        /// The broker.
        broker: Broker,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no way to the broker, or it does not speak MQTT 5.
    #[error(
        "the broker {broker} cannot be reached ({reason}); check that it runs, its address and the network"
    )]
    Unreachable {
        /// The broker.
        broker: Broker,
        /// What ended the attempt.
        reason: String,
    },
    /// All attempts failed.
    #[error(
        "{unsent} of {all} messages were not acknowledged by the broker {broker} after {attempts} connections \
         ({reason}); check that it runs and can be reached"
    )]
    Unacknowledged {
        /// The broker.
        broker: Broker,
        /// Messages without an acknowledgement.
        unsent: usize,
        /// Messages in all.
        all: usize,
        /// Connections tried.
        attempts: u32,
        /// What ended the last one.
        reason: String,
    },
}

impl PublishError {
    /// Whether the user's flag or file is at fault, not the machine or the network.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::Credential { .. } | Self::NoAuthority { .. })
    }
}

/// Why a connection ended before its work was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The broker does not want us; somebody has to change something.
    Refused(String),
    /// The broker is not who it should be.
    Untrusted(String),
    /// Trying again may help.
    Lost(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(reason) | Self::Lost(reason) => f.write_str(reason),
            Self::Untrusted(reason) => write!(f, "its certificate is not to be trusted: {reason}"),
        }
    }
}
