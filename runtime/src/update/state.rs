//! What a device remembers of a repository: one file, so that one rename makes it new.
//!
//! tough keeps the metadata that it trusts in files of its own, written in place and not synced; where a power cut leaves two of
//! them cut short, an older repository is taken without a word. Here tough gets a scratch folder, and what it came to trust
//! goes into this file: written aside, synced, renamed, with a digest over its content. A file that does not have its digest is
//! refused, never taken for an empty one.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::UpdateError;
use crate::disk::Disk;
use crate::files::write_atomically_on;
use crate::tensor::sha256;

const SCHEMA: &str = "scanside.trust/1";

/// Four metadata files and a desired state have a few megabytes at most.
const MOST_BYTES: u64 = 32 << 20;

/// See the module's description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// SHA-256 of the root file that trust began with: with another one it begins anew.
    pub anchor: String,
    /// The newest trusted root, as JSON.
    pub root: String,
    /// The newest trusted metadata, as JSON; none before the first look at a repository.
    pub timestamp: Option<String>,
    pub snapshot: Option<String>,
    pub targets: Option<String>,
    /// The latest time that this device has known, in seconds of Unix time. A box without a clock of its own starts in 1970,
    /// where nothing has expired yet: it never goes back before this.
    pub clock: i64,
    /// The desired state that is followed, as it was signed, and its revision.
    pub desired: Option<Followed>,
}

/// A desired state that was verified when it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Followed {
    pub revision: u64,
    /// The signed part.
    pub signed: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    /// SHA-256 of `state`.
    sha256: String,
    /// [`State`] as JSON, in a string: its digest is over bytes.
    state: String,
}

impl State {
    /// None where there is no file.
    pub fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Self>, UpdateError> {
        let bytes = match disk.read(path, MOST_BYTES) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(UpdateError::io(path))?,
        };
        let damaged = |detail: String| UpdateError::State {
            path: path.into(),
            detail: format!(
                "does not hold what was written ({detail}), so it is not known which releases this device has seen; restore the file, or \
                 delete it to trust the root anew"
            ),
            damaged: true,
        };
        let file: File = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if file.schema != SCHEMA {
            return Err(damaged(format!("its schema is {}, expected {SCHEMA}", file.schema)));
        }
        if sha256(file.state.as_bytes()) != file.sha256 {
            return Err(damaged("its digest is another one".into()));
        }
        serde_json::from_str(&file.state).map(Some).map_err(|error| damaged(error.to_string()))
    }

    pub fn write(&self, disk: &dyn Disk, path: &Path) -> Result<(), UpdateError> {
        let state = serde_json::to_string(self).unwrap_or_default();
        let file = File { schema: SCHEMA.into(), sha256: sha256(state.as_bytes()), state };
        let bytes = serde_json::to_vec_pretty(&file).unwrap_or_default();
        write_atomically_on(disk, path, &bytes).map_err(UpdateError::io(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_was_changed_or_cut_short_is_refused() {
        let (folder, disk) = (tempfile::tempdir().unwrap(), crate::disk::RealDisk::Shared);
        let path = folder.path().join("trust.json");
        assert_eq!(State::read(&disk, &path).unwrap(), None);
        let state = State {
            anchor: "a".into(),
            root: "{\"signed\":1}".into(),
            timestamp: Some("t".into()),
            snapshot: None,
            targets: None,
            clock: 17,
            desired: Some(Followed { revision: 3, signed: "x".into() }),
        };
        state.write(&disk, &path).unwrap();
        assert_eq!(State::read(&disk, &path).unwrap().as_ref(), Some(&state));
        let bytes = std::fs::read(&path).unwrap();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(State::read(&disk, &path).is_err(), "cut to {length} bytes");
        }
        let text = String::from_utf8(bytes).unwrap();
        std::fs::write(&path, text.replace(r#"\"clock\":17"#, r#"\"clock\":16"#)).unwrap();
        assert!(State::read(&disk, &path).unwrap_err().to_string().contains("digest"));
    }
}
