//! Opening: what a crash left is found and mended.

use std::collections::{HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};

use redb::{ReadableTable, ReadableTableMetadata};

use super::group::Group;
use super::index::{INSTANCES, Index, JOBS, NUMBER_BYTES, NUMBERS, OPEN, OUTBOX, decode};
use super::rows::{InstanceRow, JobRow};
use super::spool::Budget;
use super::{Limits, Store, StoreError};
use crate::disk::Disk;

/// What was found at opening, and mended; for the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Whether the store was made.
    pub created: bool,
    /// Files that were being received; removed.
    pub spools: u64,
    /// Files that were not acknowledged, or of a series that is no longer kept; removed.
    pub orphans: u64,
    /// Acknowledged instances whose file is not there or not of its length: never after a power cut, only after a fault of the disk. Their
    /// series' jobs will fail and say so; the same instance put again mends it.
    pub missing: Vec<PathBuf>,
    /// Instances stored.
    pub instances: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Series with instances that are part of no revision.
    pub open_series: u64,
    /// Jobs in the queue.
    pub jobs: u64,
    /// Those of them that were tried before, among them the one that was running when the process ended.
    pub tried: u64,
    /// Messages that wait to be sent.
    pub outbox: u64,
}

impl Store {
    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        folder: &Path,
        limits: Limits,
    ) -> Result<(Self, Recovery), StoreError> {
        make_durably(&*disk, folder)?;
        let lock_file = folder.join("lock");
        let lock = disk
            .lock(&lock_file)
            .map_err(StoreError::file(&lock_file, "locked"))?
            .ok_or_else(|| StoreError::InUse { folder: folder.to_owned() })?;
        for name in ["instances", "spool"] {
            let path = folder.join(name);
            disk.create_folder(&path).map_err(StoreError::file(&path, "created"))?;
        }
        // The index syncs the folder, and with it the names just made.
        let (index, created) = Index::open(Arc::clone(&disk), folder)?;
        let store = Self {
            budget: Arc::new(Budget::new(folder, Arc::clone(&disk), limits)),
            folder: folder.to_owned(),
            disk,
            index,
            spools: AtomicU64::new(0),
            arriving: Mutex::new(HashSet::new()),
            arrived: Condvar::new(),
            files: RwLock::new(()),
            folders: Mutex::new(HashSet::new()),
            commits: Group::new(),
            running: Mutex::new(HashSet::new()),
            _lock: lock,
        };
        let mut recovery = store.found()?;
        recovery.created = created;
        store.budget.stored.store(recovery.bytes, Ordering::Relaxed);
        recovery.spools = store.remove_spools()?;
        store.compare_files(&mut recovery)?;
        Ok((store, recovery))
    }

    fn found(&self) -> Result<Recovery, StoreError> {
        self.index.read(|txn| {
            let jobs = txn.open_table(JOBS)?;
            let mut tried = 0;
            for entry in jobs.iter()? {
                tried += u64::from(decode::<JobRow>(entry?.1.value())?.tries > 0);
            }
            Ok(Recovery {
                instances: txn.open_table(INSTANCES)?.len()?,
                bytes: txn.open_table(NUMBERS)?.get(NUMBER_BYTES)?.map_or(0, |n| n.value()),
                open_series: txn.open_table(OPEN)?.len()?,
                jobs: jobs.len()?,
                tried,
                outbox: txn.open_table(OUTBOX)?.len()?,
                ..Recovery::default()
            })
        })
    }

    fn remove_spools(&self) -> Result<u64, StoreError> {
        let folder = self.folder.join("spool");
        let left = self.disk.list(&folder).map_err(StoreError::file(&folder, "listed"))?;
        for entry in &left {
            let path = folder.join(&entry.name);
            self.disk.remove(&path).map_err(StoreError::file(&path, "removed"))?;
        }
        Ok(left.len() as u64)
    }

    /// Removes files without a row, notes rows without a file.
    fn compare_files(&self, recovery: &mut Recovery) -> Result<(), StoreError> {
        let mut rows: HashMap<PathBuf, u64> = self.index.read(|txn| {
            let mut rows = HashMap::new();
            for entry in txn.open_table(INSTANCES)?.iter()? {
                let (key, value) = entry?;
                let (series, sop) = key.value();
                rows.insert(self.place_of(series, sop).1, decode::<InstanceRow>(value.value())?.bytes);
            }
            Ok(rows)
        })?;
        let parent = self.folder.join("instances");
        for series in self.disk.list(&parent).map_err(StoreError::file(&parent, "listed"))? {
            let folder = parent.join(&series.name);
            if !series.is_folder {
                self.disk.remove(&folder).map_err(StoreError::file(&folder, "removed"))?;
                continue;
            }
            let mut kept = false;
            for entry in self.disk.list(&folder).map_err(StoreError::file(&folder, "listed"))? {
                let path = folder.join(&entry.name);
                if let Some(bytes) = rows.get(&path) {
                    kept = true;
                    if *bytes == entry.bytes {
                        rows.remove(&path);
                    }
                } else {
                    self.disk.remove(&path).map_err(StoreError::file(&path, "removed"))?;
                    recovery.orphans += 1;
                }
            }
            if !kept {
                self.disk.remove_folder(&folder).map_err(StoreError::file(&folder, "removed"))?;
            }
        }
        recovery.missing = rows.into_keys().collect();
        recovery.missing.sort();
        Ok(())
    }
}

/// Makes a folder and those above it that are not there, each durably.
fn make_durably(disk: &dyn Disk, folder: &Path) -> Result<(), StoreError> {
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty());
    let made = match disk.create_folder(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound && above.is_some() => {
            above.map_or(Ok(()), |above| make_durably(disk, above))?;
            disk.create_folder(folder)
        }
        other => other,
    };
    let made = made.map_err(StoreError::file(folder, "created"))?;
    // Also if it was there: whoever made it may have ended before this.
    let above = above.unwrap_or(Path::new("."));
    match disk.sync_folder(above) {
        // Made by someone else, in a place where this process may make nothing.
        Err(e) if !made && e.kind() == ErrorKind::PermissionDenied => Ok(()),
        other => other.map_err(StoreError::file(above, "synced")),
    }
}
