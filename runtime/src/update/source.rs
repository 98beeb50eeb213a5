//! Where a repository's files come from, and tough's view of it.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use firmware_config::device::Source as Address;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use super::{Folder, Https, UpdateError};

/// Longest metadata file that is taken. A thousand targets of three hundred bytes each are a third of it.
pub(super) const MAX_METADATA: u64 = 1 << 20;

/// A place that holds a repository. What it gives is not believed.
pub trait Source: Debug + Send + Sync {
    /// Where it is, for messages.
    fn name(&self) -> String;

    /// A metadata file of at most `limit` bytes; none where there is no such file.
    fn metadata(&self, file: &str, limit: u64) -> Result<Option<Vec<u8>>, SourceError>;

    /// Hands over the bytes of the target from `from` on, in pieces, in their order. `take` ends it by its error.
    fn target(&self, target: &TargetFile, from: u64, take: &mut Take<'_>) -> Result<(), SourceError>;
}

/// What is done with the next bytes of a target.
pub type Take<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// A target as it lies in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFile {
    /// Its place under `targets`, with its digest in front of the file's name: `north/SHA256.bowel-1.0.0.plugin`.
    pub path: String,
    /// Its signed SHA-256.
    pub sha256: String,
    /// Its signed length.
    pub length: u64,
}

impl TargetFile {
    /// With consistent snapshots: "the file name of a target is of the form HASH.FILENAME.EXT" (TUF specification, 6.2).
    pub fn new(target: &firmware_config::TargetRef) -> Self {
        let (folder, file) = target.name.rsplit_once('/').map_or(("", target.name.as_str()), |(a, b)| (a, b));
        let slash = if folder.is_empty() { "" } else { "/" };
        Self {
            path: format!("{folder}{slash}{}.{file}", target.sha256),
            sha256: target.sha256.clone(),
            length: target.length,
        }
    }
}

/// Why a source did not give what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It cannot be read or reached.
    #[error("the repository at {source_name} cannot be read: {detail}; it is tried again")]
    Failed {
        /// Where it is.
        source_name: String,
        /// What happened.
        detail: String,
    },
    /// It sends so slowly that waiting would be endless.
    #[error("the repository at {source_name} sends {file} too slowly ({detail}); it is tried again")]
    TooSlow {
        /// Where it is.
        source_name: String,
        /// What was asked for.
        file: String,
        /// How slow.
        detail: String,
    },
    /// It sends more than was asked for.
    #[error(
        "the repository at {source_name} sends more than the {limit} bytes that {file} may have; it was cut off"
    )]
    TooLong {
        /// Where it is.
        source_name: String,
        /// What was asked for.
        file: String,
        /// The most that was waited for.
        limit: u64,
    },
}

/// The repository at `address`, where it can be read without a broker; none where the broker holds it. `ca` is for https.
pub fn open(address: &Address, ca: Option<&Path>) -> Result<Option<Arc<dyn Source>>, UpdateError> {
    Ok(match address {
        Address::Mqtt => None,
        Address::Folder(folder) => Some(Arc::new(Folder(folder.clone()))),
        // Without the authority's file the error says that it is missing.
        Address::Https(base) => Some(Arc::new(Https::new(base, ca.unwrap_or(Path::new("")))?)),
    })
}

/// A source as tough reads metadata from it.
#[derive(Debug, Clone)]
pub(super) struct Bridge(pub Arc<dyn Source>);

/// The address that stands for the folder of metadata in [`Bridge`].
pub(super) const METADATA: &str = "scanside:///metadata/";

pub(super) fn metadata_url() -> Url {
    Url::parse(METADATA).expect("a constant")
}

#[async_trait]
impl Transport for Bridge {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let file = url.path_segments().and_then(Iterator::last).unwrap_or_default().to_owned();
        let source = self.0.clone();
        let read = tokio::task::spawn_blocking(move || source.metadata(&file, MAX_METADATA)).await;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            TransportError::new_with_cause(TransportErrorKind::Other, url.clone(), error)
        };
        match read.map_err(|error| failed(error.into()))? {
            Ok(Some(bytes)) => Ok(Box::pin(futures::stream::iter([Ok(Bytes::from(bytes))]))),
            Ok(None) => Err(TransportError::new(TransportErrorKind::FileNotFound, url)),
            Err(error) => Err(failed(error.into())),
        }
    }
}
