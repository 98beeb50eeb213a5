//! The queue: a revision of a series waits, is tried, and ends once.

use std::collections::HashSet;

use redb::{ReadableTable, WriteTransaction};

use super::index::{
    Fault, INSTANCES, JOBS, NUMBER_JOB, NUMBER_TURN, OPEN, QUARANTINE, RESULTS, SERIES, bump, decode, encode,
    row,
};
use super::outbox::append;
use super::rows::{JobRow, QuarantineRow, ResultRow, SeriesRow, StudyRow};
use super::studies;
use super::{
    Completion, Ending, Failure, Job, JobId, Kind, OutboxMessage, Store, StoreError, StoredResult, StudyJob,
    locked,
};

impl Store {
    /// Ends a revision of a series with all instances so far, and queues its job. None if no instance has come since the last revision.
    pub fn close(
        &self,
        series_uid: &str,
        completion: Completion,
        now: i64,
    ) -> Result<Option<JobId>, StoreError> {
        self.index.write(|txn| {
            let mut series = txn.open_table(SERIES)?;
            let Some(mut of_series) =
                row::<_, SeriesRow>(&series, series_uid)?.filter(|row| row.instances > row.closed)
            else {
                return Ok(None);
            };
            let job = JobRow {
                series_uid: series_uid.to_owned(),
                revision: of_series.revisions,
                completion,
                instances: of_series.instances,
                queued: now,
                turn: bump(txn, NUMBER_TURN)?,
                tries: 0,
                reason: None,
                quarantined: false,
                study: None,
            };
            of_series.closed = of_series.instances;
            of_series.revisions += 1;
            of_series.jobs += 1;
            of_series.last = of_series.last.max(now);
            let id = bump(txn, NUMBER_JOB)?;
            txn.open_table(JOBS)?.insert(id, encode(&job)?.as_slice())?;
            series.insert(series_uid, encode(&of_series)?.as_slice())?;
            txn.open_table(OPEN)?.remove(series_uid)?;
            Ok(Some(JobId(id)))
        })
    }

    /// The job whose turn it is, or None. Its try is counted durably first, so that a series that ends the process is not tried for ever; each
    /// try puts it at the end of the queue. The revisions of one series come in their order, one at a time. A job that was running when the process ended waits again.
    /// A job about a study is not taken while it waits for other series.
    ///
    /// A job whose last try ended the process is put into quarantine and given with [`Job::quarantined`] set.
    pub fn take(&self, now: i64) -> Result<Option<Job>, StoreError> {
        let mut running = locked(&self.running);
        let Some(id) = self.index.read(|txn| next(&txn.open_table(JOBS)?, &running, now))? else {
            return Ok(None);
        };
        let job = self.index.write(|txn| {
            let mut job = job_row(txn, id)?;
            if !job.quarantined && job.tries >= self.max_tries() {
                let before =
                    job.reason.map_or(String::new(), |reason| format!("; an earlier one failed: {reason}"));
                job.reason = Some(format!("none of {} tries came to an end{before}", job.tries));
                quarantine(txn, id, &mut job, now)?;
            } else if !job.quarantined {
                job.tries += 1;
            }
            job.turn = bump(txn, NUMBER_TURN)?;
            txn.open_table(JOBS)?.insert(id.0, encode(&job)?.as_slice())?;
            self.job(txn, id, job)
        })?;
        running.insert(id);
        Ok(Some(job))
    }

    /// [`Self::end`] of a job whose results are about its own series.
    ///
    /// # Errors
    /// [`StoreError::NoSuchJob`] if it has ended before.
    pub fn finish(
        &self,
        job: JobId,
        results: &[StoredResult],
        messages: &[OutboxMessage],
        now: i64,
    ) -> Result<(), StoreError> {
        self.end(job, &Ending { results, messages, ..Ending::default() }, now)
    }

    /// Ends a job, in one transaction: it leaves the queue, its results are kept and its messages wait to be sent.
    ///
    /// Results about other series too are kept for each; the jobs that the job's task has there are answered by them, and end.
    /// Each task that waits gets a job of its own about the study, unless the series has one; those of the study's other series
    /// then wait as long.
    ///
    /// # Errors
    /// [`StoreError::NoSuchJob`] if it has ended before.
    pub fn end(&self, job: JobId, ending: &Ending<'_>, now: i64) -> Result<(), StoreError> {
        let mut running = locked(&self.running);
        self.index.write(|txn| {
            let ended = job_row(txn, job)?;
            remove(txn, job, &ended)?;
            keep(txn, &ended.series_uid, ending, now)?;
            if let Some(study) = &ended.study {
                studies::answer(txn, &study.task, ending.also, &running)?;
            }
            for wait in ending.waits {
                studies::wait(txn, &ended, wait, &running, now)?;
            }
            append(txn, ending.messages, now)
        })?;
        running.remove(&job);
        Ok(())
    }

    /// Ends a try that did not succeed. `reason` is kept; it must not name a patient.
    ///
    /// # Errors
    /// [`StoreError::NoSuchJob`] if the job has ended before.
    pub fn fail(&self, job: JobId, reason: &str, now: i64) -> Result<Failure, StoreError> {
        let mut running = locked(&self.running);
        let failure = self.index.write(|txn| {
            let mut failed = job_row(txn, job)?;
            failed.reason = Some(reason.to_owned());
            let is_last = failed.quarantined || failed.tries >= self.max_tries();
            if is_last {
                quarantine(txn, job, &mut failed, now)?;
            }
            txn.open_table(JOBS)?.insert(job.0, encode(&failed)?.as_slice())?;
            Ok(if is_last { Failure::Quarantined(self.job(txn, job, failed)?) } else { Failure::Retry })
        })?;
        if failure == Failure::Retry {
            running.remove(&job);
        }
        Ok(failure)
    }

    /// Lets go of a job without a try having been made, as at a shutdown.
    ///
    /// # Errors
    /// [`StoreError::NoSuchJob`] if the job has ended before.
    pub fn give_back(&self, job: JobId) -> Result<(), StoreError> {
        let mut running = locked(&self.running);
        self.index.write(|txn| {
            let mut back = job_row(txn, job)?;
            if !back.quarantined {
                back.tries = back.tries.saturating_sub(1);
            }
            txn.open_table(JOBS)?.insert(job.0, encode(&back)?.as_slice())?;
            Ok(())
        })?;
        running.remove(&job);
        Ok(())
    }

    /// The results of a series that are kept, oldest first.
    pub fn results(&self, series_uid: &str) -> Result<Vec<StoredResult>, StoreError> {
        self.index.read(|txn| {
            let of_series: SeriesRow = row(&txn.open_table(SERIES)?, series_uid)?.unwrap_or_default();
            let table = txn.open_table(RESULTS)?;
            let mut all = Vec::new();
            for result_id in of_series.all_results {
                if let Some(ResultRow { task, kind, json, .. }) = row(&table, &result_id)? {
                    all.push(StoredResult { result_id, task, kind, json });
                }
            }
            Ok(all)
        })
    }

    /// A result that is kept.
    pub fn result(&self, result_id: &str) -> Result<Option<StoredResult>, StoreError> {
        let found: Option<ResultRow> = self.index.read(|txn| row(&txn.open_table(RESULTS)?, result_id))?;
        let result_id = result_id.to_owned();
        Ok(found.map(|ResultRow { task, kind, json, .. }| StoredResult { result_id, task, kind, json }))
    }

    fn job(&self, txn: &WriteTransaction, id: JobId, job: JobRow) -> Result<Job, Fault> {
        let series: SeriesRow = row(&txn.open_table(SERIES)?, &job.series_uid)?.unwrap_or_default();
        Ok(Job {
            id,
            study_uid: series.study_uid,
            instances: self.list(&txn.open_table(INSTANCES)?, &job.series_uid, job.instances)?,
            series_uid: job.series_uid,
            revision: job.revision,
            completion: job.completion,
            tries: job.tries,
            replaces: series.results,
            study: job.study.map(|StudyRow { task, since, .. }| StudyJob { task, since }),
            quarantined: if job.quarantined { job.reason } else { None },
        })
    }
}

impl JobRow {
    /// Whether the job waits for other series.
    pub(super) fn waits_at(&self, now: i64) -> bool {
        self.study.as_ref().is_some_and(|study| study.until > now)
    }
}

/// Takes a job out of the queue.
pub(super) fn remove(txn: &WriteTransaction, id: JobId, job: &JobRow) -> Result<(), Fault> {
    txn.open_table(JOBS)?.remove(id.0)?;
    let mut series = txn.open_table(SERIES)?;
    let mut of_series: SeriesRow = row(&series, &job.series_uid)?.unwrap_or_default();
    of_series.jobs = of_series.jobs.saturating_sub(1);
    series.insert(job.series_uid.as_str(), encode(&of_series)?.as_slice())?;
    Ok(())
}

/// Keeps results for the series of the job that has ended, and for the others that they are about.
fn keep(txn: &WriteTransaction, own: &str, ending: &Ending<'_>, now: i64) -> Result<(), Fault> {
    let all: Vec<&str> = [own].into_iter().chain(ending.also.iter().map(String::as_str)).collect();
    let mut results = txn.open_table(RESULTS)?;
    for StoredResult { result_id, task, kind, json } in ending.results.iter().cloned() {
        let series = if all.len() > 1 { all.iter().map(|&uid| uid.to_owned()).collect() } else { Vec::new() };
        let kept = ResultRow { task, kind, stored: now, json, series };
        results.insert(result_id.as_str(), encode(&kept)?.as_slice())?;
    }
    let mut table = txn.open_table(SERIES)?;
    for uid in all {
        // Another series may be swept since it was looked at.
        let Some(mut series) = row::<_, SeriesRow>(&table, uid)? else { continue };
        series.last = series.last.max(now);
        for StoredResult { result_id, task, kind, .. } in ending.results {
            if matches!(kind, Kind::Final | Kind::Refused) {
                series.results.insert(task.clone(), result_id.clone());
            }
            if !series.all_results.contains(result_id) {
                series.all_results.push(result_id.clone());
            }
        }
        table.insert(uid, encode(&series)?.as_slice())?;
    }
    Ok(())
}

/// Of the jobs that nobody works on, each the first of its series, the one whose turn comes first. One that waits for other series
/// is passed over and holds nothing up.
fn next(
    jobs: &impl ReadableTable<u64, &'static [u8]>,
    running: &HashSet<JobId>,
    now: i64,
) -> Result<Option<JobId>, Fault> {
    let mut series = HashSet::new();
    let mut first: Option<(u64, JobId)> = None;
    for entry in jobs.iter()? {
        let (id, value) = entry?;
        let (id, job) = (JobId(id.value()), decode::<JobRow>(value.value())?);
        if !job.waits_at(now) && series.insert(job.series_uid) && !running.contains(&id) {
            first = Some(first.map_or((job.turn, id), |first| first.min((job.turn, id))));
        }
    }
    Ok(first.map(|(_, id)| id))
}

fn job_row(txn: &WriteTransaction, job: JobId) -> Result<JobRow, Fault> {
    row(&txn.open_table(JOBS)?, job.0)?.ok_or(Fault::Ours(StoreError::NoSuchJob { job }))
}

fn quarantine(txn: &WriteTransaction, id: JobId, job: &mut JobRow, now: i64) -> Result<(), Fault> {
    job.quarantined = true;
    let row = QuarantineRow {
        series_uid: job.series_uid.clone(),
        revision: job.revision,
        tries: job.tries,
        reason: job.reason.clone().unwrap_or_default(),
        at: now,
    };
    txn.open_table(QUARANTINE)?.insert(id.0, encode(&row)?.as_slice())?;
    Ok(())
}
