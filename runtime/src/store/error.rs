//! What can go wrong in the store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::JobId;

/// Why the store did not do what it was asked. It can be cloned, because callers share a commit and so its failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk budget is spent. What is stored stays; nothing new is taken.
    #[error(
        "the store {} is full: {used} of {max} bytes are used and {free} bytes are free where {min_free} must stay \
         free; wait for the retention time, or raise the limits", folder.display()
    )]
    Full {
        /// The store's folder.
        folder: PathBuf,
        /// Bytes of stored instances and of those being received.
        used: u64,
        /// [`super::Limits::max_bytes`].
        max: u64,
        /// Bytes free in the file system.
        free: u64,
        /// [`super::Limits::min_free_bytes`].
        min_free: u64,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process; stop that one first", folder.display())]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// A later build wrote the store.
    #[error(
        "the store's index {} has layout {found}, expected {expected} or older; run the build that wrote it", path.display()
    )]
    Layout {
        /// The index file.
        path: PathBuf,
        /// The layout's number.
        found: u64,
        /// What this build writes.
        expected: u64,
    },
    /// The index was altered by something other than this program.
    #[error(
        "the store's index {} is damaged ({detail}); check the disk, and move the store's folder away to start with an empty one", path.display()
    )]
    Damaged {
        /// The index file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// Reading or writing the index failed.
    #[error("the store's index {} cannot be used ({detail}); check the disk", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// What failed.
        detail: String,
        /// Whether it failed for want of space.
        full: bool,
    },
    /// A file or folder of the store.
    #[error("{} cannot be {action} ({source}); check the disk", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a participle.
        action: &'static str,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// An instance is not as long as the caller says.
    #[error("the instance has {found} bytes, expected {expected}; receive it again")]
    Length {
        /// Bytes written to the spool.
        found: u64,
        /// [`super::NewInstance::bytes`].
        expected: u64,
    },
    /// A job that is not in the queue, because it was never there or has ended.
    #[error("job {job} is not in the queue; a job ends once")]
    NoSuchJob {
        /// The job.
        job: JobId,
    },
    /// A commit that others took part in came to no end.
    #[error("the commit of an instance was broken off by a fault of this program; receive it again")]
    BrokenOff,
}

impl StoreError {
    /// Whether the user's file or flag is at fault: never, the store takes what it is given or the machine is at fault.
    pub fn is_bad_input(&self) -> bool {
        false
    }

    /// Whether there is no room, so that a later try may succeed and a sender is to be told "out of resources".
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Index { full: true, .. } => true,
            Self::File { source, .. } => is_full(source),
            _ => false,
        }
    }

    pub(super) fn file<'a>(path: &'a Path, action: &'static str) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::File { path: path.to_owned(), action, source: Arc::new(source) }
    }
}

/// Whether the file system or the quota has no room left.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
