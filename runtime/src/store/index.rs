//! The index file: redb's tables, and how a transaction on them begins, ends and fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::error::is_full;
use crate::disk::{Disk, DiskFile};

/// Layout of the tables that this build writes.
const LAYOUT: u64 = 1;

/// Pages of the index kept in memory. The whole index of 10,000 instances has about 3 MB.
const CACHE_BYTES: usize = 4 << 20;

pub(super) type Rows<K> = TableDefinition<'static, K, &'static [u8]>;

/// Numbers by name; see the constants that follow.
pub(super) const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
pub(super) const SERIES: Rows<&str> = TableDefinition::new("series");
/// Series that have instances which are part of no revision.
pub(super) const OPEN: TableDefinition<&str, ()> = TableDefinition::new("open");
pub(super) const INSTANCES: Rows<(&str, &str)> = TableDefinition::new("instances");
pub(super) const JOBS: Rows<u64> = TableDefinition::new("jobs");
pub(super) const RESULTS: Rows<&str> = TableDefinition::new("results");
pub(super) const QUARANTINE: Rows<u64> = TableDefinition::new("quarantine");
/// Topic, payload, when it was put there.
pub(super) const OUTBOX: TableDefinition<u64, (&str, &[u8], i64)> = TableDefinition::new("outbox");

const NUMBER_LAYOUT: &str = "layout";
const NUMBER_OPENED: &str = "opened";
pub(super) const NUMBER_BYTES: &str = "instance bytes";
pub(super) const NUMBER_JOB: &str = "next job";
pub(super) const NUMBER_TURN: &str = "next turn";
pub(super) const NUMBER_MESSAGE: &str = "next message";

/// The index. After a failed commit the file is opened again before it is used: only then is it known whether the commit took
/// place.
pub(super) struct Index {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    database: RwLock<Option<Database>>,
    reopening: Mutex<()>,
}

impl Index {
    /// Opens `folder`'s index; makes it if there is none, and says so.
    pub fn open(disk: Arc<dyn Disk>, folder: &Path) -> Result<(Self, bool), StoreError> {
        let path = folder.join("index.redb");
        let is_there = disk.length(&path).map_err(StoreError::file(&path, "examined"))?.is_some();
        // Half of an index, or, where a power cut took one half of the renaming, a second name of the whole.
        let new = folder.join("index.redb.new");
        if disk.length(&new).map_err(StoreError::file(&new, "examined"))?.is_some() {
            disk.remove(&new).map_err(StoreError::file(&new, "removed"))?;
        }
        if !is_there {
            // redb writes a new file's header in several steps; under its own name there is never a part of them.
            let file = disk.create(&new).map_err(StoreError::file(&new, "created"))?;
            Self::at(Arc::clone(&disk), new.clone()).start(file)?;
            disk.rename(&new, &path).map_err(StoreError::file(&path, "put in place"))?;
        }
        // Also if the file was there: a process may have ended between the renaming and this.
        disk.sync_folder(folder).map_err(StoreError::file(folder, "synced"))?;
        let index = Self::at(disk, path);
        index.reopen()?;
        Ok((index, !is_there))
    }

    fn at(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self { disk, path, database: RwLock::new(None), reopening: Mutex::new(()) }
    }

    fn reopen(&self) -> Result<(), StoreError> {
        let file = self.disk.open(&self.path).map_err(StoreError::file(&self.path, "opened"))?;
        // redb would make a new index in an empty file, and all that was stored would be forgotten without a word.
        if file.len().map_err(StoreError::file(&self.path, "measured"))? == 0 {
            return Err(StoreError::Damaged { path: self.path.clone(), detail: "it is empty".into() });
        }
        self.start(file)
    }

    fn start(&self, file: Box<dyn DiskFile>) -> Result<(), StoreError> {
        let database = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            // A flipped bit is better found now than in the middle of a job.
            .set_check_integrity_on_open(true)
            .create_with_backend(Backend(file))
            .map_err(|error| self.opening(error))?;
        let write = || -> Result<(), Fault> {
            let txn = database.begin_write()?;
            // What an earlier process had committed, but not synced, was read as if it were durable: from here on it is.
            bump(&txn, NUMBER_OPENED)?;
            {
                let mut numbers = txn.open_table(NUMBERS)?;
                let found = numbers.get(NUMBER_LAYOUT)?.map(|n| n.value());
                match found {
                    Some(found) if found > LAYOUT => {
                        let path = self.path.clone();
                        return Err(Fault::Ours(StoreError::Layout { path, found, expected: LAYOUT }));
                    }
                    _ => numbers.insert(NUMBER_LAYOUT, LAYOUT)?,
                };
            }
            txn.open_table(SERIES)?;
            txn.open_table(OPEN)?;
            txn.open_table(INSTANCES)?;
            txn.open_table(JOBS)?;
            txn.open_table(RESULTS)?;
            txn.open_table(QUARANTINE)?;
            txn.open_table(OUTBOX)?;
            Ok(txn.commit()?)
        };
        write().map_err(|fault| self.fault(fault))?;
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok(())
    }

    /// Runs `work` in one transaction: all of it is durable when this returns Ok, none of it when `work` fails. Where the commit itself
    /// fails, it may be either.
    pub fn write<T>(&self, work: impl Fn(&WriteTransaction) -> Result<T, Fault>) -> Result<T, StoreError> {
        self.with(|database| {
            let txn = database.begin_write()?;
            let value = work(&txn)?;
            txn.commit()?;
            Ok(value)
        })
    }

    /// Runs `work` on what is durable.
    pub fn read<T>(&self, work: impl Fn(&ReadTransaction) -> Result<T, Fault>) -> Result<T, StoreError> {
        self.with(|database| work(&database.begin_read()?))
    }

    fn with<T>(&self, work: impl Fn(&Database) -> Result<T, Fault>) -> Result<T, StoreError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.reopen_once()?;
        }
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = guard.as_ref() else {
            let (path, detail) = (self.path.clone(), "it was given up after a fault".to_owned());
            return Err(StoreError::Index { path, detail, full: false });
        };
        let outcome = work(database);
        drop(guard);
        outcome.map_err(|fault| {
            if matches!(fault, Fault::Redb(_)) {
                *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.fault(fault)
        })
    }

    fn reopen_once(&self) -> Result<(), StoreError> {
        let _one = super::locked(&self.reopening);
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        tracing::warn!(path = %self.path.display(), "the store's index is opened again after a fault");
        self.reopen()
    }

    fn opening(&self, error: DatabaseError) -> StoreError {
        match error {
            DatabaseError::Storage(StorageError::Corrupted(detail)) => {
                StoreError::Damaged { path: self.path.clone(), detail }
            }
            DatabaseError::Storage(StorageError::Io(e)) if e.kind() == io::ErrorKind::InvalidData => {
                StoreError::Damaged { path: self.path.clone(), detail: e.to_string() }
            }
            other => self.fault(Fault::Redb(other.into())),
        }
    }

    fn fault(&self, fault: Fault) -> StoreError {
        match fault {
            Fault::Ours(error) => error,
            Fault::Redb(error) => {
                let full = matches!(&error, redb::Error::Io(e) if is_full(e));
                StoreError::Index { path: self.path.clone(), detail: error.to_string(), full }
            }
            Fault::Row(detail) => StoreError::Damaged { path: self.path.clone(), detail },
        }
    }
}

/// What ends a transaction before its time.
pub(super) enum Fault {
    /// The store's own reasons; the index is sound.
    Ours(StoreError),
    /// The index cannot be used as it is.
    Redb(redb::Error),
    /// A row that this build cannot read.
    Row(String),
}

macro_rules! redb_faults {
    ($($error:ty),*) => { $(
        impl From<$error> for Fault {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )* };
}

redb_faults!(redb::TransactionError, redb::TableError, StorageError, redb::CommitError);

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Ours(error)
    }
}

/// A number that is counted up; the value before.
pub(super) fn bump(txn: &WriteTransaction, name: &str) -> Result<u64, Fault> {
    let mut numbers = txn.open_table(NUMBERS)?;
    let before = numbers.get(name)?.map_or(0, |n| n.value());
    numbers.insert(name, before + 1)?;
    Ok(before)
}

/// A row as it is written.
pub(super) fn encode(row: &impl Serialize) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(row).map_err(|e| Fault::Row(e.to_string()))
}

/// A row as it was written.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault::Row(format!("a row that cannot be read: {e}")))
}

/// The row under `key`.
pub(super) fn row<K: redb::Key + 'static, T: DeserializeOwned>(
    table: &impl ReadableTable<K, &'static [u8]>,
    key: K::SelfType<'_>,
) -> Result<Option<T>, Fault> {
    table.get(key)?.map(|found| decode(found.value())).transpose()
}

/// The store locks its folder, so redb need not lock the file.
#[derive(Debug)]
struct Backend(Box<dyn DiskFile>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}
