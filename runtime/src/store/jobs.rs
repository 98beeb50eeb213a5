//! The queue: a revision of a series waits, is tried, and ends once.

use std::collections::HashSet;

use redb::{ReadableTable, WriteTransaction};

use super::index::{
    Fault, INSTANCES, JOBS, NUMBER_JOB, NUMBER_TURN, OPEN, QUARANTINE, RESULTS, SERIES, bump, decode, encode,
    row,
};
use super::outbox::append;
use super::rows::{JobRow, QuarantineRow, ResultRow, SeriesRow};
use super::{Completion, Failure, Job, JobId, Kind, OutboxMessage, Store, StoreError, StoredResult, locked};

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
    ///
    /// A job whose last try ended the process is put into quarantine and given with [`Job::quarantined`] set.
    pub fn take(&self, now: i64) -> Result<Option<Job>, StoreError> {
        let mut running = locked(&self.running);
        let Some(id) = self.index.read(|txn| next(&txn.open_table(JOBS)?, &running))? else {
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

    /// Ends a job: it leaves the queue, its results are kept and its messages wait to be sent, in one transaction.
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
        let mut running = locked(&self.running);
        self.index.write(|txn| {
            let ended = job_row(txn, job)?;
            txn.open_table(JOBS)?.remove(job.0)?;
            let mut series = txn.open_table(SERIES)?;
            let mut of_series: SeriesRow = row(&series, &ended.series_uid)?.unwrap_or_default();
            of_series.jobs = of_series.jobs.saturating_sub(1);
            of_series.last = of_series.last.max(now);
            let mut table = txn.open_table(RESULTS)?;
            for result in results {
                let StoredResult { result_id, task, kind, json } = result.clone();
                if matches!(kind, Kind::Final | Kind::Refused) {
                    of_series.results.insert(task.clone(), result_id.clone());
                }
                let kept = ResultRow { task, kind, stored: now, json };
                if table.insert(result_id.as_str(), encode(&kept)?.as_slice())?.is_none() {
                    of_series.all_results.push(result_id);
                }
            }
            series.insert(ended.series_uid.as_str(), encode(&of_series)?.as_slice())?;
            append(txn, messages, now)
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
            quarantined: if job.quarantined { job.reason } else { None },
        })
    }
}

/// Of the jobs that nobody works on, each the first of its series, the one whose turn comes first.
fn next(
    jobs: &impl ReadableTable<u64, &'static [u8]>,
    running: &HashSet<JobId>,
) -> Result<Option<JobId>, Fault> {
    let mut series = HashSet::new();
    let mut first: Option<(u64, JobId)> = None;
    for entry in jobs.iter()? {
        let (id, value) = entry?;
        let (id, job) = (JobId(id.value()), decode::<JobRow>(value.value())?);
        if series.insert(job.series_uid) && !running.contains(&id) {
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
