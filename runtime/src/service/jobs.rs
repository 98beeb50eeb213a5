//! The thread that classifies series, one after the other, each by every task that takes it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, locked};
use super::early::Ready;
use crate::Error;
use crate::infer::{Context, Encoded, LoadedTask, Scan, SliceName};
use crate::ingest::rules::{Decision, ObservedSeries};
use crate::result::{Input, Kind, TaskResult};
use crate::store::{Failure, Job, JobId, StoreError, StoredResult};
use crate::volume::{Arrangement, Header, Instance, Volume, VolumeError, series_digest};

/// Looks for work at least so often.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// After the disk failed.
const AFTER_FAULT: Duration = Duration::from_secs(5);

/// Until the service stops; a job in hand is finished.
pub(super) fn run(core: &Core) {
    while !core.queue.is_stopping() {
        match core.store.take(core.clock.wall()) {
            Ok(Some(job)) => one(core, &job),
            Ok(None) => core.queue.wait(LONGEST_WAIT),
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read");
                core.queue.pause(AFTER_FAULT);
            }
        }
    }
}

/// Why a try came to nothing.
enum Trouble {
    /// The service stops.
    Stopped,
    /// Something failed that may not fail again.
    Failed(String),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Takes a job as far as it goes.
fn one(core: &Core, job: &Job) {
    *locked(&core.queue.in_hand) = Some(job.id);
    let ended = match &job.quarantined {
        Some(reason) => finish(core, job, &give_up(core, job, reason)),
        None => attempt(core, job),
    };
    if let Err(error) = ended {
        tracing::error!(job = %job.id, %error, "the end of a job cannot be written down; it is tried again");
        if let Err(error) = core.store.give_back(job.id) {
            tracing::error!(job = %job.id, %error, "nor can the job be put back before the next start");
        }
        core.queue.pause(AFTER_FAULT);
    }
    *locked(&core.queue.in_hand) = None;
}

fn attempt(core: &Core, job: &Job) -> Result<(), StoreError> {
    let outcome = catch_unwind(AssertUnwindSafe(|| classify(core, job)));
    let reason = match outcome {
        Ok(Ok(results)) => return finish(core, job, &results),
        Ok(Err(Trouble::Stopped)) => return core.store.give_back(job.id),
        Ok(Err(Trouble::Failed(reason))) => reason,
        Err(_) => "the program met a state that it does not know; its log says where".to_owned(),
    };
    tracing::warn!(job = %job.id, tries = job.tries, reason, "a job failed");
    match core.store.fail(job.id, &reason, core.clock.wall())? {
        Failure::Retry => {
            // What failed may pass: a full disk, a memory that others need.
            core.queue.pause(Duration::from_secs(u64::from(job.tries)));
            Ok(())
        }
        Failure::Quarantined(job) => {
            let reason = job.quarantined.clone().unwrap_or(reason);
            finish(core, &job, &give_up(core, &job, &reason))
        }
    }
}

/// Ends a job: all that follows from it is durable at once.
fn finish(core: &Core, job: &Job, results: &[TaskResult]) -> Result<(), StoreError> {
    let stored: Vec<StoredResult> = results
        .iter()
        .map(|result| StoredResult {
            result_id: result.result_id.clone(),
            task: result.task.name.clone(),
            kind: result.kind,
            json: result.to_json(),
        })
        .collect();
    let messages: Vec<_> = results.iter().map(|result| core.message(result)).collect();
    core.store.finish(job.id, &stored, &messages, core.clock.wall())?;
    core.wake_session();
    locked(&core.quarters).retain(|(series, _), _| *series != job.series_uid);
    let count = |kind| results.iter().filter(|result| result.kind == kind).count();
    let (classified, refused) = (count(Kind::Final), count(Kind::Refused));
    tracing::info!(job = %job.id, revision = job.revision, classified, refused, "a job has ended");
    Ok(())
}

/// What every task that takes the series says of it.
fn classify(core: &Core, job: &Job) -> Result<Vec<TaskResult>, Trouble> {
    let started = Instant::now();
    let headers = headers(core, job)?;
    let mut series = Series { core, job, headers: &headers, volume: None };
    let mut results = Vec::new();
    for (task, decision) in decisions(core, &headers) {
        let name = &task.plugin.manifest.task.name;
        if core.queue.is_stopping() {
            return Err(Trouble::Stopped);
        }
        let context = context(core, job, name);
        if !decision.accepted {
            for reason in decision.refusals() {
                tracing::info!(job = %job.id, task = name, reason, "a task does not take the series");
            }
            // What was said of an earlier revision does not hold any more.
            if job.replaces.contains_key(name) {
                let reason = format!("with the slices that came later: {}", decision.refusals().join("; "));
                results.push(task.refusal(&input(job, &context), reason, &context));
            }
            continue;
        }
        let mut result = match series.classify(&task, &context) {
            Ok(result) => result,
            Err(Refused::Trouble(trouble)) => return Err(trouble),
            Err(Refused::Series(reason)) => {
                tracing::warn!(job = %job.id, task = name, reason, "a series cannot be classified");
                task.refusal(&input(job, &context), reason, &context)
            }
        };
        let total = started.elapsed();
        result.timings_ms.insert("total".into(), milliseconds(total));
        {
            let mut totals = core.totals();
            let inference = totals.inference.entry(name.clone()).or_default();
            inference.count += 1;
            inference.time += total;
        }
        results.push(result);
    }
    Ok(results)
}

fn decisions(core: &Core, headers: &[Arc<Header>]) -> Vec<(Arc<LoadedTask>, Decision)> {
    let headers: Vec<Header> = headers.iter().map(|header| (**header).clone()).collect();
    ObservedSeries::from_headers(&headers).map(|series| core.tasks.decide(&series)).unwrap_or_default()
}

/// Refused results of the tasks that would have taken the series, or of all where that cannot be told.
fn give_up(core: &Core, job: &Job, reason: &str) -> Vec<TaskResult> {
    tracing::error!(job = %job.id, tries = job.tries, reason, "a series is given up");
    let known =
        catch_unwind(AssertUnwindSafe(|| headers(core, job).ok().map(|headers| decisions(core, &headers))));
    let taken: Vec<Arc<LoadedTask>> = match known.ok().flatten() {
        Some(decisions) => decisions.into_iter().filter(|(_, d)| d.accepted).map(|(task, _)| task).collect(),
        None => core.tasks.current(),
    };
    let refuse = |task: &Arc<LoadedTask>| {
        let context = context(core, job, &task.plugin.manifest.task.name);
        task.refusal(&input(job, &context), format!("given up after {} tries: {reason}", job.tries), &context)
    };
    taken.iter().map(refuse).collect()
}

fn context(core: &Core, job: &Job, task: &str) -> Context {
    let mut context = core.context(job.completion);
    context.revision = job.revision;
    context.replaces = job.replaces.get(task).cloned();
    context
}

fn input(job: &Job, context: &Context) -> Input {
    let (study, series) = (job.study_uid.clone(), job.series_uid.clone());
    Input::series(study, series, job.instances.len(), digest(job), context)
}

/// Of what was received.
fn digest(job: &Job) -> String {
    series_digest(job.instances.iter().map(|stored| stored.sha256.clone()))
}

/// Of each instance, as it arrived or, after a restart, read again.
fn headers(core: &Core, job: &Job) -> Result<Vec<Arc<Header>>, Error> {
    let one = |stored: &crate::store::StoredInstance| {
        let known = core.early.header(&job.series_uid, &stored.sop_uid);
        known.map_or_else(|| Ok(Arc::new(Header::read(&stored.path)?)), Ok)
    };
    job.instances.iter().map(one).collect()
}

/// Why a task says nothing of a series.
enum Refused {
    /// It cannot be classified, however often it is tried.
    Series(String),
    Trouble(Trouble),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            // Stored files do not vanish by themselves.
            Error::Volume(error @ VolumeError::Io { .. }) => {
                Self::Trouble(Trouble::Failed(error.to_string()))
            }
            error if error.is_bad_input() => Self::Series(error.to_string()),
            error => Self::Trouble(error.into()),
        }
    }
}

impl From<VolumeError> for Refused {
    fn from(error: VolumeError) -> Self {
        Error::from(error).into()
    }
}

/// The series of a job, as far as it is read.
struct Series<'a> {
    core: &'a Core,
    job: &'a Job,
    headers: &'a [Arc<Header>],
    /// Read once, for all tasks that need it whole.
    volume: Option<Volume>,
}

impl Series<'_> {
    fn classify(&mut self, task: &Arc<LoadedTask>, context: &Context) -> Result<TaskResult, Refused> {
        let single = self.headers.iter().all(|header| header.is_image && header.number_of_frames == 1);
        if single
            && task.plugin.manifest.is_streamable()
            && let Some(result) = self.by_slices(task, context)?
        {
            return Ok(result);
        }
        if self.core.queue.is_stopping() {
            return Err(Refused::Trouble(Trouble::Stopped));
        }
        self.as_a_whole(task, context)
    }

    /// From slices that were encoded by themselves, most of them while the series was arriving. `None` where the series
    /// must be read whole.
    fn by_slices(&self, task: &Arc<LoadedTask>, context: &Context) -> Result<Option<TaskResult>, Refused> {
        let start = Instant::now();
        let all = self.job.instances.iter().zip(self.headers);
        let wanted: Vec<_> = all
            .map(|(stored, header)| (stored.sop_uid.as_str(), header.clone(), stored.path.as_path()))
            .collect();
        let slices = self.core.early.encode(&self.job.series_uid, &wanted, task);
        if self.core.queue.is_stopping() {
            return Err(Refused::Trouble(Trouble::Stopped));
        }
        let Some(mut slices) = slices.into_iter().collect::<Option<Vec<Arc<Ready>>>>() else {
            return Ok(None);
        };
        let encoded = start.elapsed();
        slices.sort_by(|a, b| a.instance.sop_uid().cmp(b.instance.sop_uid()));
        self.unchanged(&series_digest(slices.iter().map(|ready| ready.read.sha256.clone())))?;
        let instances = slices.iter().map(|ready| ready.instance.clone()).collect();
        let arrangement = Arrangement::new(&self.origin(), instances)?;
        if !(0..slices.len()).all(|k| arrangement.stands_alone(k)) {
            return Ok(None);
        }
        let by_uid = |instance: &Instance| {
            let at = slices.binary_search_by(|ready| ready.instance.sop_uid().cmp(instance.sop_uid()));
            at.ok().and_then(|at| slices[at].of(task))
        };
        let stored: Vec<&Instance> = arrangement.slices().map(|(instance, _)| instance).collect();
        let ascending = arrangement.ascending();
        let parts: Option<Vec<&Encoded>> = ascending.iter().map(|&k| by_uid(stored[k])).collect();
        let Some(parts) = parts else { return Ok(None) };
        let odd = slices.iter().filter_map(|ready| Some((ready.read.odd.clone()?, ready.instance.path())));
        let names = ascending.iter().enumerate().map(|(index, &k)| SliceName {
            index,
            sop_instance_uid: Some(stored[k].sop_uid().to_owned()),
            frame_number: None,
        });
        let scan = Scan {
            source: &arrangement.source(digest(self.job)),
            observed: Some(arrangement.observed()),
            warnings: &arrangement.warnings(odd),
            slices: names.collect(),
        };
        let mut result = task.conclude(scan, &parts, context)?.result;
        result.timings_ms.insert("encode".into(), milliseconds(encoded));
        Ok(Some(result))
    }

    /// From the volume.
    fn as_a_whole(&mut self, task: &Arc<LoadedTask>, context: &Context) -> Result<TaskResult, Refused> {
        let start = Instant::now();
        let volume = match self.volume.take() {
            Some(volume) => volume,
            None => self.read()?,
        };
        let read = start.elapsed();
        let volume = self.volume.insert(volume);
        let start = Instant::now();
        let prepared = task.prepare(0, volume)?;
        let prepare = start.elapsed();
        let start = Instant::now();
        let mut result = task.classify(&[Some(&prepared)], context, &|| {})?.result;
        for (name, time) in [("read", read), ("prepare", prepare), ("encode", start.elapsed())] {
            result.timings_ms.insert(name.into(), milliseconds(time));
        }
        Ok(result)
    }

    fn read(&self) -> Result<Volume, Refused> {
        let instances = self.job.instances.iter().map(|stored| Instance::open(&stored.path));
        let instances: Vec<Instance> = instances.collect::<Result<_, VolumeError>>()?;
        let volume = Arrangement::new(&self.origin(), instances)?.read()?;
        self.unchanged(&volume.source.digest)?;
        Ok(volume)
    }

    /// Checks the digest of what was decoded against what was received.
    fn unchanged(&self, read: &str) -> Result<(), Refused> {
        if read == digest(self.job) {
            return Ok(());
        }
        let problem = "the stored files are not what was received; check the disk and send the series again";
        Err(Refused::Trouble(Trouble::Failed(format!("{}: {problem}", self.origin().display()))))
    }

    /// What messages name: the folder of the series in the store.
    fn origin(&self) -> PathBuf {
        let path = self.job.instances.first().map_or(Path::new("the series"), |stored| &stored.path);
        path.parent().unwrap_or(path).to_owned()
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// The job in hand, if the service is to end without waiting for it, waits again without a try having been counted.
pub(super) fn abandon(core: &Core) -> Option<JobId> {
    let job = (*locked(&core.queue.in_hand))?;
    if let Err(error) = core.store.give_back(job) {
        tracing::error!(%job, %error, "the job in hand cannot be put back; its try counts");
    }
    Some(job)
}
