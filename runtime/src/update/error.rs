use std::path::PathBuf;

use tough::error::Error as Tuf;
use tough::schema::RoleType;

use super::SourceError;

/// What signed metadata protects against; the word that reports and logs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Something older than what was seen before.
    Rollback,
    /// Something that has expired: newer metadata is held back.
    Freeze,
    /// Parts that do not belong together.
    MixAndMatch,
    /// Too few signatures of trusted keys.
    Signature,
    /// More bytes than were announced or can be meant.
    EndlessData,
    /// Other bytes than the signed digest's.
    Swapped,
    /// What is no metadata at all.
    Malformed,
}

impl Attack {
    fn word(self) -> &'static str {
        match self {
            Self::Rollback => "older than what this device has seen",
            Self::Freeze => "expired",
            Self::MixAndMatch => "put together from different releases",
            Self::Signature => "not signed by enough trusted keys",
            Self::EndlessData => "longer than it may be",
            Self::Swapped => "not what was signed",
            Self::Malformed => "no sound metadata",
        }
    }
}

/// Why an update was not taken.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// The source does not answer, or not as one.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The signed repository is not to be believed.
    #[error("the repository at {source_name} is {}: {detail}; what was active stays, and nothing of it is used", attack.word())]
    Untrusted {
        /// Where the repository is.
        source_name: String,
        /// What is wrong with it.
        attack: Attack,
        /// In detail.
        detail: String,
    },
    /// A target that the repository does not sign for this site.
    #[error(
        "{target:?} is no signed file for site {site} in the repository ({detail}); publish it for this site first"
    )]
    NoTarget {
        /// Its name.
        target: String,
        /// The device's site.
        site: String,
        /// What is known of it.
        detail: String,
    },
    /// The bytes of a target.
    #[error("{target} is {}: {detail}; it was thrown away", attack.word())]
    Target {
        /// Its name.
        target: String,
        /// What is wrong with it.
        attack: Attack,
        /// In detail.
        detail: String,
    },
    /// A desired state that is not for this device, or not from who may say so.
    #[error("the desired state is {}: {detail}; the device stays with revision {current}", attack.word())]
    Desired {
        /// What is wrong with it.
        attack: Attack,
        /// In detail.
        detail: String,
        /// The revision that is followed; 0 before the first.
        current: u64,
    },
    /// The file of the trusted root.
    #[error("{path} is no trusted root ({detail}); give `updates.root` the root.json that came with the device", path = path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// What the device keeps for itself.
    #[error("{path}: {detail}", path = path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
        /// Whether its content is at fault, not the machine.
        damaged: bool,
    },
}

impl UpdateError {
    /// Whether what was given is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Source(_) => false,
            Self::State { damaged, .. } => *damaged,
            _ => true,
        }
    }

    /// What it was refused for, where it was refused.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::Untrusted { attack, .. } | Self::Target { attack, .. } | Self::Desired { attack, .. } => {
                Some(*attack)
            }
            _ => None,
        }
    }

    /// Whether the same may go well a while later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Source(_) | Self::State { damaged: false, .. })
    }

    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::State { path: path.into(), detail: error.to_string(), damaged: false }
    }
}

/// What tough's verdict comes to.
pub(super) fn of_tuf(error: &Tuf, source_name: &str) -> UpdateError {
    if let Some(source) = source_error(error) {
        return UpdateError::Source(source);
    }
    let attack = match error {
        Tuf::OlderMetadata { .. }
        | Tuf::OlderSnapshotInTimestamp { .. }
        | Tuf::SnapshotRoleRollback { .. } => Attack::Rollback,
        Tuf::ExpiredMetadata { .. } => Attack::Freeze,
        Tuf::VersionMismatch { .. }
        | Tuf::SnapshotRoleMissing { .. }
        | Tuf::SnapshotTargetsMetaMissing { .. }
        | Tuf::MetaMissing { .. }
        | Tuf::HashMismatch { .. } => Attack::MixAndMatch,
        Tuf::VerifyMetadata { .. } | Tuf::VerifyRoleMetadata { .. } | Tuf::VerifyTrustedMetadata { .. } => {
            Attack::Signature
        }
        Tuf::MaxSizeExceeded { .. } | Tuf::MaxUpdatesExceeded { .. } => Attack::EndlessData,
        Tuf::Transport { source, .. } => return of_transport(source, source_name),
        _ => Attack::Malformed,
    };
    UpdateError::Untrusted { source_name: source_name.into(), attack, detail: chain(error) }
}

/// A stream that was cut off by tough itself carries tough's reason.
fn of_transport(error: &tough::TransportError, source_name: &str) -> UpdateError {
    let inner = std::error::Error::source(error).and_then(|inner| inner.downcast_ref::<Tuf>());
    match inner {
        Some(inner) => of_tuf(inner, source_name),
        None => {
            UpdateError::Source(SourceError::Failed { source_name: source_name.into(), detail: chain(error) })
        }
    }
}

/// The source's own error, however deep it lies.
fn source_error(error: &(dyn std::error::Error + 'static)) -> Option<SourceError> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<SourceError>() {
            return Some(found.clone());
        }
        next = error.source();
    }
    None
}

/// An error and its causes, those that say something new.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = cause.source();
    }
    // The address that stands for a source says nothing to a reader, and a key's identifier is printed as the program has it.
    let text = text.replace(super::source::METADATA, "");
    let text = text.split_once("Duplicate key ID").map_or(text.as_str(), |_| "one key has signed twice");
    // Some of them span lines.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(super) fn expired(role: RoleType, name: &str, at: &str, now: &str, source_name: &str) -> UpdateError {
    let role = if role == RoleType::DelegatedTargets { format!("role {name}") } else { role.to_string() };
    UpdateError::Untrusted {
        source_name: source_name.into(),
        attack: Attack::Freeze,
        detail: format!("its {role} metadata was good until {at}, and it is {now} by this device's clock"),
    }
}
