//! Instances on their way in, and the budget that they are held to.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::{Limits, StoreError};
use crate::disk::{Disk, DiskFile};

/// The file system is asked for its free bytes each time that a spool has grown by this much.
const ASK_EVERY: u64 = 1 << 20;

/// Bytes used and bytes allowed.
pub(super) struct Budget {
    pub folder: PathBuf,
    pub disk: Arc<dyn Disk>,
    limits: RwLock<Limits>,
    /// Bytes of the instances in the index.
    pub stored: AtomicU64,
    /// Bytes written to spools, or to files that are not yet in the index.
    arriving: AtomicU64,
}

impl Budget {
    pub fn new(folder: &Path, disk: Arc<dyn Disk>, limits: Limits) -> Self {
        let (stored, arriving) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { folder: folder.to_owned(), disk, limits: RwLock::new(limits), stored, arriving }
    }

    pub fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// Bytes of all instances, those that are still arriving among them.
    pub fn used(&self) -> u64 {
        self.stored.load(Ordering::Relaxed) + self.arriving.load(Ordering::Relaxed)
    }

    pub fn free(&self) -> Result<u64, StoreError> {
        self.disk.free_bytes(&self.folder).map_err(StoreError::file(&self.folder, "measured"))
    }

    /// Whether `used` bytes are within the limit, and, where it is asked, whether enough stays free.
    fn check(&self, used: u64, ask: bool) -> Result<(), StoreError> {
        let Limits { max_bytes: max, min_free_bytes: min_free, .. } = self.limits();
        if !ask && used <= max {
            return Ok(());
        }
        let free = self.free()?;
        if used > max || free < min_free {
            return Err(StoreError::Full { folder: self.folder.clone(), used, max, free, min_free });
        }
        Ok(())
    }
}

/// A file that is being received. It is removed on drop unless [`super::Store::put`] took it.
pub struct Spool {
    budget: Arc<Budget>,
    file: Box<dyn DiskFile>,
    path: PathBuf,
    written: u64,
    /// Whether the file was renamed into its place.
    placed: bool,
}

impl Spool {
    pub(super) fn create(budget: &Arc<Budget>, path: PathBuf) -> Result<Self, StoreError> {
        // One more byte must fit, or the sender is better told now.
        budget.check(budget.used() + 1, true)?;
        let file = budget.disk.create(&path).map_err(StoreError::file(&path, "created"))?;
        Ok(Self { budget: Arc::clone(budget), file, path, written: 0, placed: false })
    }

    /// The file, which can be read as far as it was written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.written
    }

    /// Makes the content durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.file.sync().map_err(StoreError::file(&self.path, "synced"))
    }

    /// Gives the file its name, which is not durable yet.
    pub(super) fn place(mut self, target: &Path) -> Result<Arriving, StoreError> {
        self.budget.disk.rename(&self.path, target).map_err(StoreError::file(target, "put in place"))?;
        self.placed = true;
        Ok(Arriving { bytes: self.written, budget: Arc::clone(&self.budget) })
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool")
            .field("path", &self.path)
            .field("bytes", &self.written)
            .finish_non_exhaustive()
    }
}

impl Write for Spool {
    /// As a file's; [`io::ErrorKind::StorageFull`] where the budget is spent.
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let more = data.len() as u64;
        let used = self.budget.arriving.fetch_add(more, Ordering::Relaxed)
            + more
            + self.budget.stored.load(Ordering::Relaxed);
        let before = self.written;
        // Counted before the check: two that write at once must not both find the last byte free.
        self.written += more;
        let outcome =
            self.budget.check(used, before / ASK_EVERY != self.written / ASK_EVERY).map_err(|error| {
                let kind = if error.is_full() { io::ErrorKind::StorageFull } else { io::ErrorKind::Other };
                io::Error::new(kind, error)
            });
        let outcome = outcome.and_then(|()| self.file.write_at(before, data));
        if let Err(error) = outcome {
            self.written = before;
            self.budget.arriving.fetch_sub(more, Ordering::Relaxed);
            return Err(error);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        self.budget.arriving.fetch_sub(self.written, Ordering::Relaxed);
        // What stays behind is removed when the store is opened next.
        if let Err(error) = self.budget.disk.remove(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a spool file was left behind");
        }
    }
}

/// Bytes that lie in their place and are not in the index yet: counted until they are, or have failed to be.
pub(super) struct Arriving {
    bytes: u64,
    budget: Arc<Budget>,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.budget.arriving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
