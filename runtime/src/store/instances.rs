//! From a spool file to an acknowledged instance.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};

use super::index::{Fault, INSTANCES, NUMBER_BYTES, NUMBERS, OPEN, SERIES, decode, encode, row};
use super::rows::{InstanceRow, SeriesRow};
use super::spool::Arriving;
use super::{NewInstance, Put, SeriesRecord, Spool, Store, StoreError, StoredInstance, locked};
use crate::tensor::sha256;

/// An instance whose file is in its place, not yet acknowledged.
pub(super) struct Placed {
    folder: PathBuf,
    instance: NewInstance,
    _arriving: Arriving,
}

impl Store {
    /// Stores what was received, and returns when it is durable. An instance of a UID that the series has already is not stored again,
    /// unless its file was lost.
    ///
    /// # Errors
    /// [`StoreError::Length`] if the spool is not as long as `instance` says; otherwise the machine is at fault. After an error the instance may be
    /// stored or not; to put it again is right in both cases.
    pub fn put(&self, spool: Spool, instance: &NewInstance) -> Result<Put, StoreError> {
        let _files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        let _one = OneAtATime::new(self, instance);
        match self.place(spool, instance)? {
            Ok(placed) => self.commits.submit(placed, |batch| self.commit(&batch)).map(|()| Put::New),
            Err(duplicate) => Ok(duplicate),
        }
    }

    /// The file in its place; or, as `Err`, that there is one already.
    pub(super) fn place(
        &self,
        spool: Spool,
        instance: &NewInstance,
    ) -> Result<Result<Placed, Put>, StoreError> {
        if spool.bytes() != instance.bytes {
            return Err(StoreError::Length { found: spool.bytes(), expected: instance.bytes });
        }
        let (folder, path) = self.place_of(&instance.series_uid, &instance.sop_uid);
        let key = (instance.series_uid.as_str(), instance.sop_uid.as_str());
        let stored: Option<InstanceRow> = self.index.read(|txn| row(&txn.open_table(INSTANCES)?, key))?;
        if let Some(stored) = stored {
            let length = self.disk.length(&path).map_err(StoreError::file(&path, "examined"))?;
            if length == Some(stored.bytes) {
                return Ok(Err(Put::Duplicate { same_bytes: stored.sha256 == instance.sha256 }));
            }
        }
        // First the content, then the name: a file in its place is always whole.
        spool.sync()?;
        let _folders = locked(&self.folders);
        self.disk.create_folder(&folder).map_err(StoreError::file(&folder, "created"))?;
        let arriving = spool.place(&path)?;
        Ok(Ok(Placed { folder, instance: instance.clone(), _arriving: arriving }))
    }

    /// Makes the names of the files durable, then their rows, in one transaction.
    pub(super) fn commit(&self, batch: &[Placed]) -> Result<(), StoreError> {
        let folders: BTreeSet<&Path> = batch.iter().map(|placed| placed.folder.as_path()).collect();
        let new: Vec<&Path> = {
            let known = locked(&self.folders);
            folders.iter().copied().filter(|folder| !known.contains(*folder)).collect()
        };
        if !new.is_empty() {
            let parent = self.folder.join("instances");
            self.disk.sync_folder(&parent).map_err(StoreError::file(&parent, "synced"))?;
            locked(&self.folders).extend(new.into_iter().map(Path::to_owned));
        }
        for folder in folders {
            self.disk.sync_folder(folder).map_err(StoreError::file(folder, "synced"))?;
        }
        let bytes = self.index.write(|txn| {
            for placed in batch {
                add(txn, &placed.instance)?;
            }
            Ok(txn.open_table(NUMBERS)?.get(NUMBER_BYTES)?.map_or(0, |n| n.value()))
        })?;
        self.budget.stored.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Every series that has instances which are part of no revision.
    pub fn series(&self) -> Result<Vec<SeriesRecord>, StoreError> {
        self.index.read(|txn| {
            let (open, series) = (txn.open_table(OPEN)?, txn.open_table(SERIES)?);
            let mut all = Vec::new();
            for entry in open.iter()? {
                let key = entry?.0;
                let series_uid = key.value().to_owned();
                if let Some(row) = row::<_, SeriesRow>(&series, &series_uid)? {
                    all.push(SeriesRecord {
                        study_uid: row.study_uid,
                        series_uid,
                        expected: row.expected,
                        instances: row.instances,
                        open: row.instances - row.closed,
                        first_received: row.first,
                        last_received: row.last,
                    });
                }
            }
            Ok(all)
        })
    }

    /// The instances of a series, in the order in which they were received.
    pub fn instances(&self, series_uid: &str) -> Result<Vec<StoredInstance>, StoreError> {
        self.index.read(|txn| self.list(&txn.open_table(INSTANCES)?, series_uid, u32::MAX))
    }

    /// The file of an instance, whether it is stored or not.
    pub fn instance_path(&self, series_uid: &str, sop_uid: &str) -> PathBuf {
        self.place_of(series_uid, sop_uid).1
    }

    /// As [`Store::instances`], those with a sequence number below `end`.
    pub(super) fn list(
        &self,
        table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
        series_uid: &str,
        end: u32,
    ) -> Result<Vec<StoredInstance>, Fault> {
        let mut found = Vec::new();
        for entry in table.range((series_uid, "")..)? {
            let (key, value) = entry?;
            let (series, sop_uid) = key.value();
            if series != series_uid {
                break;
            }
            let InstanceRow { sequence, sha256, bytes, .. } = decode(value.value())?;
            if sequence < end {
                let path = self.place_of(series, sop_uid).1;
                found.push((sequence, StoredInstance { path, sop_uid: sop_uid.to_owned(), sha256, bytes }));
            }
        }
        found.sort_by_key(|(sequence, _)| *sequence);
        Ok(found.into_iter().map(|(_, instance)| instance).collect())
    }

    /// Folder and file of an instance. UIDs come from outside and could be any text, so they are no names of files.
    pub(super) fn place_of(&self, series_uid: &str, sop_uid: &str) -> (PathBuf, PathBuf) {
        let folder = self.folder.join("instances").join(sha256(series_uid.as_bytes()));
        let path = folder.join(sha256(sop_uid.as_bytes()));
        (folder, path)
    }
}

/// The rows of one new instance.
fn add(txn: &WriteTransaction, new: &NewInstance) -> Result<(), Fault> {
    let mut series = txn.open_table(SERIES)?;
    let mut instances = txn.open_table(INSTANCES)?;
    let mut numbers = txn.open_table(NUMBERS)?;
    let key = (new.series_uid.as_str(), new.sop_uid.as_str());
    // There is a row already where only the file was lost.
    let before: Option<InstanceRow> = row(&instances, key)?;
    let mut of_series: SeriesRow = row(&series, &new.series_uid)?.unwrap_or_else(|| SeriesRow {
        first: new.received,
        last: new.received,
        ..SeriesRow::default()
    });
    let sequence = before.as_ref().map_or(of_series.instances, |row| row.sequence);
    if before.is_none() {
        of_series.instances += 1;
        txn.open_table(OPEN)?.insert(new.series_uid.as_str(), ())?;
    }
    of_series.study_uid = of_series.study_uid.or_else(|| new.study_uid.clone());
    of_series.expected = new.expected.or(of_series.expected);
    of_series.last = of_series.last.max(new.received);
    series.insert(new.series_uid.as_str(), encode(&of_series)?.as_slice())?;
    let (sha256, bytes, received) = (new.sha256.clone(), new.bytes, new.received);
    instances.insert(key, encode(&InstanceRow { sequence, sha256, bytes, received })?.as_slice())?;
    let used = numbers.get(NUMBER_BYTES)?.map_or(0, |n| n.value());
    numbers.insert(NUMBER_BYTES, (used + new.bytes).saturating_sub(before.map_or(0, |row| row.bytes)))?;
    Ok(())
}

/// Keeps a second instance of the same UID waiting until the first is in the index, so that it is found to be a duplicate and
/// never takes the place of a file that is acknowledged.
struct OneAtATime<'a> {
    store: &'a Store,
    key: (String, String),
}

impl<'a> OneAtATime<'a> {
    fn new(store: &'a Store, instance: &NewInstance) -> Self {
        let key = (instance.series_uid.clone(), instance.sop_uid.clone());
        let mut arriving = locked(&store.arriving);
        while !arriving.insert(key.clone()) {
            arriving = store.arrived.wait(arriving).unwrap_or_else(PoisonError::into_inner);
        }
        Self { store, key }
    }
}

impl Drop for OneAtATime<'_> {
    fn drop(&mut self) {
        locked(&self.store.arriving).remove(&self.key);
        self.store.arrived.notify_all();
    }
}
