//! Tasks that look at several series of a study: their jobs wait in the queue, and one result ends those of all its series.

use std::collections::HashSet;

use redb::{ReadableTable, WriteTransaction};

use super::index::{Fault, INSTANCES, JOBS, NUMBER_JOB, NUMBER_TURN, SERIES, bump, decode, encode, row};
use super::jobs::remove;
use super::rows::{JobRow, SeriesRow, StudyRow};
use super::{JobId, Store, StoreError, StudySeries, Wait, locked};

impl Store {
    /// The complete series of the study that a series belongs to, by their UIDs; of one that names no study, itself.
    pub fn study(&self, series_uid: &str) -> Result<Vec<StudySeries>, StoreError> {
        self.index.read(|txn| {
            let (table, instances) = (txn.open_table(SERIES)?, txn.open_table(INSTANCES)?);
            let own: SeriesRow = row(&table, series_uid)?.unwrap_or_default();
            let mut found = Vec::new();
            for entry in table.iter()? {
                let (key, value) = entry?;
                let uid = key.value();
                let SeriesRow { study_uid, closed, results, .. } = decode(value.value())?;
                let same = uid == series_uid || study_uid.is_some() && study_uid == own.study_uid;
                if same && closed > 0 {
                    let instances = self.list(&instances, uid, closed)?;
                    found.push(StudySeries { series_uid: uid.to_owned(), instances, results });
                }
            }
            Ok(found)
        })
    }

    /// When the next job that waits for other series is to be taken all the same, ms since 1970.
    pub fn next_until(&self) -> Result<Option<i64>, StoreError> {
        let running = locked(&self.running).clone();
        self.index.read(|txn| {
            let waiting = study_jobs(&txn.open_table(JOBS)?, &running, |_| true)?;
            Ok(waiting.into_iter().filter_map(|(_, job)| Some(job.study?.until)).min())
        })
    }
}

/// Queues a task's job about the study of a series whose job has ended, in the place of one that the series has, and lets those
/// of the study's other series wait as long.
pub(super) fn wait(
    txn: &WriteTransaction,
    ended: &JobRow,
    wait: &Wait,
    running: &HashSet<JobId>,
    now: i64,
) -> Result<(), Fault> {
    let of_series: SeriesRow = row(&txn.open_table(SERIES)?, &ended.series_uid)?.unwrap_or_default();
    let study =
        StudyRow { task: wait.task.clone(), study_uid: of_series.study_uid, since: now, until: wait.until };
    let same = |job: &JobRow, of: &StudyRow| {
        let same_study = of.study_uid.is_some() && of.study_uid == study.study_uid;
        of.task == study.task && (same_study || job.series_uid == ended.series_uid) && !job.quarantined
    };
    let others = study_jobs(&txn.open_table(JOBS)?, running, |job| {
        job.study.as_ref().is_some_and(|of| same(job, of))
    })?;
    for (id, mut job) in others {
        if job.series_uid == ended.series_uid {
            remove(txn, id, &job)?;
        } else {
            job.study = Some(study.clone());
            txn.open_table(JOBS)?.insert(id.0, encode(&job)?.as_slice())?;
        }
    }
    let turn = bump(txn, NUMBER_TURN)?;
    let job = JobRow { queued: now, turn, tries: 0, reason: None, study: Some(study), ..ended.clone() };
    let id = bump(txn, NUMBER_JOB)?;
    txn.open_table(JOBS)?.insert(id, encode(&job)?.as_slice())?;
    let mut table = txn.open_table(SERIES)?;
    let mut of_series: SeriesRow = row(&table, &ended.series_uid)?.unwrap_or_default();
    of_series.jobs += 1;
    table.insert(ended.series_uid.as_str(), encode(&of_series)?.as_slice())?;
    Ok(())
}

/// Ends the jobs that a task has about the studies of these series.
pub(super) fn answer(
    txn: &WriteTransaction,
    task: &str,
    series: &[String],
    running: &HashSet<JobId>,
) -> Result<(), Fault> {
    let answered = study_jobs(&txn.open_table(JOBS)?, running, |job| {
        series.contains(&job.series_uid) && job.study.as_ref().is_some_and(|of| of.task == task)
    })?;
    answered.into_iter().try_for_each(|(id, job)| remove(txn, id, &job))
}

/// Of the jobs about studies that nobody works on, those that are `wanted`.
fn study_jobs(
    jobs: &impl ReadableTable<u64, &'static [u8]>,
    running: &HashSet<JobId>,
    wanted: impl Fn(&JobRow) -> bool,
) -> Result<Vec<(JobId, JobRow)>, Fault> {
    let mut found = Vec::new();
    for entry in jobs.iter()? {
        let (id, value) = entry?;
        let (id, job) = (JobId(id.value()), decode::<JobRow>(value.value())?);
        if job.study.is_some() && !running.contains(&id) && wanted(&job) {
            found.push((id, job));
        }
    }
    Ok(found)
}
