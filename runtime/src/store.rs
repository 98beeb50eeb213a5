//! What must outlive a power cut: received instances, series, jobs, results and the messages to be sent.
//!
//! Pixels lie in plain files, everything else in one index file (redb, whose types appear in this module only):
//!
//! ```text
//! lock                                 held by the process that has the store open
//! index.redb                           series, instances, jobs, results, quarantine, outbox
//! instances/<series>/<instance>        as received; names are SHA-256 of the UIDs, never the UIDs
//! spool/<number>                       being received; removed at the next opening
//! ```
//!
//! An instance is first a spool file, whose content is synced, then renamed into its place, whose folder is synced, and last a
//! row of the index. [`Store::put`] returns after all of that, so what was acknowledged to a scanner is there after a power cut
//! at any instant, and a file without a row is one that was not acknowledged. Callers that put at the same time share the last
//! two steps. Every change of a job is one transaction with all that follows from it, so a job ends once.
//!
//! The store knows no clock: times are arguments, in milliseconds since 1970. It refuses nothing for what it contains; what an
//! instance is worth is for others to say. It does refuse to grow past its budget ([`StoreError::is_full`]).

mod error;
mod group;
mod index;
mod instances;
mod jobs;
mod outbox;
mod recovery;
mod retention;
mod rows;
mod spool;
mod studies;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use redb::{ReadableTable, ReadableTableMetadata};

use self::group::Group;
use self::index::{Index, JOBS, OPEN, OUTBOX, QUARANTINE, RESULTS, decode};
use self::spool::Budget;
use crate::disk::{Disk, Lock, RealDisk};
use crate::result::{Completion, Kind};

pub use self::error::StoreError;
pub use self::recovery::Recovery;
pub use self::retention::Swept;
pub use self::spool::Spool;

/// How much the store may hold, and how often a job is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of instances, those being received among them. The index and the outbox come on top: some kilobytes an instance or result.
    pub max_bytes: u64,
    /// Bytes of the file system that must stay free while instances are received.
    pub min_free_bytes: u64,
    /// Tries of a job before it goes into quarantine, at least 1.
    pub max_tries: u32,
}

/// What is known of an instance when it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewInstance {
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: String,
    /// DICOM SOP Instance UID (0008,0018).
    pub sop_uid: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Length of the file; what was written to the spool must be as long.
    pub bytes: u64,
    /// Number of instances that the series will have, where the sender says so.
    pub expected: Option<u32>,
    /// When it was received, ms since 1970.
    pub received: i64,
}

/// What became of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is stored.
    New,
    /// The series had an instance of this UID already, which was kept.
    Duplicate {
        /// Whether the two are equal.
        same_bytes: bool,
    },
}

/// A series with instances that are part of no revision yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesRecord {
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: String,
    /// Number of instances that the sender said it will have.
    pub expected: Option<u32>,
    /// Instances so far.
    pub instances: u32,
    /// Those of them that are part of no revision.
    pub open: u32,
    /// When the first instance was received, ms since 1970.
    pub first_received: i64,
    /// When the last instance was received, or a job of the series ended, ms since 1970.
    pub last_received: i64,
}

/// A stored instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredInstance {
    /// Its file.
    pub path: PathBuf,
    /// DICOM SOP Instance UID (0008,0018).
    pub sop_uid: String,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub sha256: String,
    /// Length of the file.
    pub bytes: u64,
}

/// The number of a job; never given again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One revision of a series, to be classified by every task that takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// DICOM Study Instance UID (0020,000D).
    pub study_uid: Option<String>,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: String,
    /// 0 for the series' first job.
    pub revision: u32,
    /// How it was known that the series is complete.
    pub completion: Completion,
    /// All instances of the revision, in the order in which they were received.
    pub instances: Vec<StoredInstance>,
    /// Which try this is, from 1.
    pub tries: u32,
    /// By task, the `result_id` of the last final or refused result of an earlier revision.
    pub replaces: BTreeMap<String, String>,
    /// Of a job of one task about a study, which task, and since when it waits; the job is not about the others.
    pub study: Option<StudyJob>,
    /// Why the job is in quarantine: it must not be computed again, but be ended by [`Store::finish`] with results of kind
    /// [`Kind::Refused`].
    pub quarantined: Option<String>,
}

/// Which task a job about a study is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyJob {
    /// The task's name.
    pub task: String,
    /// When the last of the study's series that it takes was worked on, ms since 1970.
    pub since: i64,
}

/// A task that looks at several series of a study is to have a job of its own, see [`Store::end`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// The task's name.
    pub task: String,
    /// When its job's turn comes, ms since 1970: at once where the study has all that the task needs.
    pub until: i64,
}

/// What follows from a job, see [`Store::end`].
#[derive(Debug, Clone, Copy, Default)]
pub struct Ending<'a> {
    /// To be kept.
    pub results: &'a [StoredResult],
    /// To be sent.
    pub messages: &'a [OutboxMessage],
    /// Other series that the results are about too.
    pub also: &'a [String],
    /// The tasks that look at the job's series together with others of its study.
    pub waits: &'a [Wait],
}

/// A complete series of a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudySeries {
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: String,
    /// All instances of its last revision, in the order in which they were received.
    pub instances: Vec<StoredInstance>,
    /// By task, the `result_id` of its last final or refused result.
    pub results: BTreeMap<String, String>,
}

/// What follows from a failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The job waits at the end of the queue.
    Retry,
    /// That was the last try: the caller makes refused results and calls [`Store::finish`]. Until then the job counts as
    /// running; after a crash [`Store::take`] gives it again, with [`Job::quarantined`] set.
    Quarantined(Job),
}

/// A result to be kept until retention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResult {
    /// See [`crate::result::result_id`].
    pub result_id: String,
    /// The task's name.
    pub task: String,
    /// What kind of result it is. A final or refused one is what the series' next revision takes the place of.
    pub kind: Kind,
    /// The result JSON.
    pub json: String,
}

/// A message that is sent until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxMessage {
    /// The MQTT topic.
    pub topic: String,
    /// The payload.
    pub payload: Vec<u8>,
}

/// A job that was given up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The job.
    pub job: JobId,
    /// DICOM Series Instance UID (0020,000E).
    pub series_uid: String,
    /// The revision.
    pub revision: u32,
    /// Tries that were made.
    pub tries: u32,
    /// Why the last one failed.
    pub reason: String,
    /// When it was given up, ms since 1970.
    pub at: i64,
}

/// How much there is of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Series with instances that are part of no revision.
    pub open_series: u64,
    /// Instances stored.
    pub instances: u64,
    /// Jobs in the queue that nobody works on and whose turn may come.
    pub waiting: u64,
    /// Jobs of tasks that wait for other series of a study.
    pub awaiting_views: u64,
    /// Jobs that somebody works on.
    pub running: u64,
    /// Jobs given up, until retention.
    pub quarantined: u64,
    /// Results stored.
    pub results: u64,
    /// Messages not delivered.
    pub outbox: u64,
    /// When the oldest of them was put there, ms since 1970.
    pub oldest_message: Option<i64>,
    /// Bytes of instances, those being received among them.
    pub bytes: u64,
    /// Bytes free in the file system.
    pub free_bytes: u64,
}

/// The store; see the module's documentation. All methods may be called from many threads, and may wait for the disk.
pub struct Store {
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    index: Index,
    budget: Arc<Budget>,
    spools: AtomicU64,
    /// Instances that are being put, so that two of one UID come one after the other.
    arriving: Mutex<HashSet<(String, String)>>,
    arrived: Condvar,
    /// Shared while instances are put, alone while files are removed.
    files: RwLock<()>,
    /// Series folders whose own name is durable. Also held while a folder is made or removed.
    folders: Mutex<HashSet<PathBuf>>,
    commits: Group<instances::Placed>,
    /// Jobs that somebody works on. Held while a job changes.
    running: Mutex<HashSet<JobId>>,
    _lock: Lock,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in `folder`, makes it if there is none, and mends what a crash left: spool files and files that were not
    /// acknowledged are removed.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open; the others where the machine is at fault.
    pub fn open(folder: &Path, limits: Limits) -> Result<(Self, Recovery), StoreError> {
        Self::open_on(Arc::new(RealDisk::Private), folder, limits)
    }

    /// Changes the limits from now on; what is stored stays.
    pub fn set_limits(&self, limits: Limits) {
        self.budget.set_limits(limits);
    }

    /// The limits at present.
    pub fn limits(&self) -> Limits {
        self.budget.limits()
    }

    fn max_tries(&self) -> u32 {
        self.budget.limits().max_tries.max(1)
    }

    /// A new file for an instance that is being received.
    ///
    /// # Errors
    /// [`StoreError::Full`] when the budget is spent.
    pub fn spool(&self) -> Result<Spool, StoreError> {
        let number = self.spools.fetch_add(1, Ordering::Relaxed);
        Spool::create(&self.budget, self.folder.join("spool").join(number.to_string()))
    }

    /// How much there is of everything at `now`, ms since 1970.
    pub fn counts(&self, now: i64) -> Result<Counts, StoreError> {
        let running = locked(&self.running).clone();
        let mut counts = self.index.read(|txn| {
            let (mut waiting, mut awaiting_views) = (0, 0);
            for entry in txn.open_table(JOBS)?.iter()? {
                let (id, job) = entry?;
                if running.contains(&JobId(id.value())) {
                    continue;
                }
                let waits = decode::<rows::JobRow>(job.value())?.waits_at(now);
                waiting += u64::from(!waits);
                awaiting_views += u64::from(waits);
            }
            let outbox = txn.open_table(OUTBOX)?;
            Ok(Counts {
                open_series: txn.open_table(OPEN)?.len()?,
                instances: txn.open_table(index::INSTANCES)?.len()?,
                waiting,
                awaiting_views,
                running: running.len() as u64,
                quarantined: txn.open_table(QUARANTINE)?.len()?,
                results: txn.open_table(RESULTS)?.len()?,
                outbox: outbox.len()?,
                oldest_message: outbox.first()?.map(|(_, message)| message.value().2),
                ..Counts::default()
            })
        })?;
        counts.bytes = self.budget.used();
        counts.free_bytes = self.budget.free()?;
        Ok(counts)
    }

    /// The jobs that were given up and not yet swept, oldest first.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>, StoreError> {
        self.index.read(|txn| {
            let mut all = Vec::new();
            for entry in txn.open_table(QUARANTINE)?.iter()? {
                let (id, value) = entry?;
                let row: rows::QuarantineRow = decode(value.value())?;
                let rows::QuarantineRow { series_uid, revision, tries, reason, at } = row;
                all.push(Quarantined { job: JobId(id.value()), series_uid, revision, tries, reason, at });
            }
            Ok(all)
        })
    }
}

/// A lock on what stays in order even if its last holder panicked.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
