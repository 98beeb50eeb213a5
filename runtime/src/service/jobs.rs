//! The thread that classifies series, one after the other, each by every task that takes it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, locked};
use super::series::{Refused, Series, headers, milliseconds, received};
use super::{shadow, studies};
use crate::Error;
use crate::infer::{Context, LoadedTask};
use crate::ingest::rules::{Decision, ObservedSeries};
use crate::result::{Input, Kind, TaskResult};
use crate::store::{Ending, Failure, Job, JobId, StoreError, StoredResult, StudyJob, Wait};
use crate::volume::Header;

/// Looks for work at least so often.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// And not more often than so.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// After the disk failed.
const AFTER_FAULT: Duration = Duration::from_secs(5);

/// Until the service stops; a job in hand is finished.
pub(super) fn run(core: &Core) {
    while !core.queue.is_stopping() {
        match core.store.take(core.clock.wall()) {
            Ok(Some(job)) => one(core, &job),
            Ok(None) => core.queue.wait(until_next(core)),
            Err(error) => {
                tracing::error!(%error, "the queue cannot be read");
                core.queue.pause(AFTER_FAULT);
            }
        }
    }
}

/// How long the queue may be left alone if nothing comes: the next job may be one that waits for other series.
fn until_next(core: &Core) -> Duration {
    let until = match core.store.next_until() {
        Ok(until) => until.map_or(i64::MAX, |until| until.saturating_sub(core.clock.wall())),
        // Reading the queue will fail too, and say so.
        Err(_) => return LONGEST_WAIT,
    };
    Duration::from_millis(u64::try_from(until).unwrap_or(0)).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

/// What follows from a job.
#[derive(Default)]
struct Outcome {
    results: Vec<TaskResult>,
    /// See [`Ending::also`].
    also: Vec<String>,
    /// See [`Ending::waits`].
    waits: Vec<Wait>,
}

/// Why a try came to nothing.
pub(super) enum Trouble {
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
        Ok(Ok(outcome)) => return finish(core, job, &outcome),
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
fn finish(core: &Core, job: &Job, outcome: &Outcome) -> Result<(), StoreError> {
    let Outcome { results, also, waits } = outcome;
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
    let ending = Ending { results: &stored, messages: &messages, also, waits };
    core.store.end(job.id, &ending, core.clock.wall())?;
    for result in results {
        core.count(result.kind);
    }
    core.wake_session();
    core.early.end(&job.series_uid);
    shadow::offer(core, job, results);
    locked(&core.quarters).retain(|(series, _), _| *series != job.series_uid);
    let count = |kind| results.iter().filter(|result| result.kind == kind).count();
    let (classified, refused) = (count(Kind::Final), count(Kind::Refused));
    let waits = waits.len();
    tracing::info!(job = %job.id, revision = job.revision, classified, refused, waits, "a job has ended");
    Ok(())
}

/// What every task that takes the series says of it; those of several views say it in a job of their own.
fn classify(core: &Core, job: &Job) -> Result<Outcome, Trouble> {
    let started = Instant::now();
    let headers = headers(core, &job.series_uid, &job.instances)?;
    let mut series = Series { core, job, headers: &headers, volume: None };
    let mut outcome = Outcome::default();
    let decisions = decisions(core, job, &headers);
    outcome.results = refusals_of_unfit(core, job, &headers)?;
    if let Some(StudyJob { task, .. }) = &job.study
        && decisions.is_empty()
        && outcome.results.is_empty()
    {
        // Taken off since it began to wait: what it had accepted does not end in silence.
        let context = studies::revised(core, job, task, context(core, job, task))?;
        let refused =
            core.tasks.retired(task).and_then(|unfit| unfit.refusal(&input(job, &context), &context));
        let gone =
            || Trouble::Failed(format!("task {task}, which has waited for other series, does not run"));
        outcome.results.push(refused.ok_or_else(gone)?);
    }
    for (task, decision) in decisions {
        let name = &task.plugin.manifest.task.name;
        if core.queue.is_stopping() {
            return Err(Trouble::Stopped);
        }
        let mut context = context(core, job, name);
        let has_views = !task.plugin.manifest.views.is_empty();
        if !decision.accepted {
            for reason in decision.refusals() {
                tracing::info!(job = %job.id, task = name, reason, "a task does not take the series");
            }
            // What was said of an earlier revision does not hold any more; or the rules have changed while it waited.
            if job.replaces.contains_key(name) || job.study.is_some() {
                if has_views {
                    context = studies::revised(core, job, name, context)?;
                }
                let cause = if job.study.is_some() {
                    "after it has waited"
                } else {
                    "with the slices that came later"
                };
                let reason = format!("{cause}: {}", decision.refusals().join("; "));
                outcome.results.push(task.refusal(&input(job, &context), reason, &context));
            }
            continue;
        }
        if has_views && job.study.is_none() {
            outcome.waits.push(studies::wait(core, job, &task));
            continue;
        }
        let answer = if has_views {
            let studies::Answer { result, also } = studies::classify(core, job, &task, context)?;
            outcome.also = also;
            result
        } else {
            match series.classify(&task, &context) {
                Ok(result) => Some(result),
                Err(Refused::Trouble(trouble)) => return Err(trouble),
                Err(Refused::Series(reason)) => Some(task.refusal(&input(job, &context), reason, &context)),
            }
        };
        let Some(mut result) = answer else { continue };
        if result.kind == Kind::Refused {
            let reason = result.warnings.join("; ");
            tracing::warn!(job = %job.id, task = name, reason, "a series cannot be classified");
        }
        let total = started.elapsed();
        result.timings_ms.insert("total".into(), milliseconds(total));
        {
            let mut totals = core.totals();
            let inference = totals.inference.entry(name.clone()).or_default();
            inference.count += 1;
            inference.time += total;
        }
        outcome.results.push(result);
    }
    Ok(outcome)
}

/// What the tasks that the job is about say to the series.
fn decisions(core: &Core, job: &Job, headers: &[Arc<Header>]) -> Vec<(Arc<LoadedTask>, Decision)> {
    let began_with = core.early.began_with(&job.series_uid);
    let decisions = observed(headers).map(|series| core.tasks.decide(&series, &began_with));
    let mut decisions = decisions.unwrap_or_default();
    decisions.retain(|(task, _)| is_about(job, task));
    decisions
}

/// What tasks say that would take the series and cannot be run: a series that is accepted does not end in silence.
fn refusals_of_unfit(core: &Core, job: &Job, headers: &[Arc<Header>]) -> Result<Vec<TaskResult>, Error> {
    let mut results = Vec::new();
    let Some(series) = observed(headers) else { return Ok(results) };
    for (name, unfit) in core.tasks.unfit_for(&series) {
        if !is_named(job, &name) {
            continue;
        }
        let mut context = context(core, job, &name);
        if unfit.manifest().is_some_and(|manifest| !manifest.views.is_empty()) {
            context = studies::revised(core, job, &name, context)?;
        }
        if let Some(result) = unfit.refusal(&input(job, &context), &context) {
            tracing::warn!(job = %job.id, task = name, reason = unfit.reason, "a series is refused");
            results.push(result);
        }
    }
    Ok(results)
}

pub(super) fn observed(headers: &[Arc<Header>]) -> Option<ObservedSeries> {
    let headers: Vec<Header> = headers.iter().map(|header| (**header).clone()).collect();
    ObservedSeries::from_headers(&headers)
}

/// Whether a job is about a task.
fn is_about(job: &Job, task: &LoadedTask) -> bool {
    is_named(job, &task.plugin.manifest.task.name)
}

fn is_named(job: &Job, task: &str) -> bool {
    job.study.as_ref().is_none_or(|study| study.task == task)
}

/// Refused results of the tasks that would have taken the series, or of all where that cannot be told.
fn give_up(core: &Core, job: &Job, reason: &str) -> Outcome {
    tracing::error!(job = %job.id, tries = job.tries, reason, "a series is given up");
    let known = catch_unwind(AssertUnwindSafe(|| {
        let headers = headers(core, &job.series_uid, &job.instances).ok()?;
        Some(decisions(core, job, &headers))
    }));
    let taken: Vec<Arc<LoadedTask>> = match known.ok().flatten() {
        Some(decisions) => {
            let taken =
                decisions.into_iter().filter(|(_, decision)| decision.accepted || job.study.is_some());
            taken.map(|(task, _)| task).collect()
        }
        None => core.tasks.current().into_iter().filter(|task| is_about(job, task)).collect(),
    };
    let refuse = |task: &Arc<LoadedTask>| {
        let name = &task.plugin.manifest.task.name;
        let mut context = context(core, job, name);
        if !task.plugin.manifest.views.is_empty() {
            context = studies::revised(core, job, name, context.clone()).unwrap_or(context);
        }
        task.refusal(&input(job, &context), format!("given up after {} tries: {reason}", job.tries), &context)
    };
    Outcome { results: taken.iter().map(refuse).collect(), ..Outcome::default() }
}

fn context(core: &Core, job: &Job, task: &str) -> Context {
    let mut context = core.context(job.completion);
    context.revision = job.revision;
    context.replaces = job.replaces.get(task).cloned();
    context
}

pub(super) fn input(job: &Job, context: &Context) -> Input {
    let (study, series) = (job.study_uid.clone(), job.series_uid.clone());
    Input::series(study, series, job.instances.len(), received(&job.instances), context)
}

/// The job in hand, if the service is to end without waiting for it, waits again without a try having been counted.
pub(super) fn abandon(core: &Core) -> Option<JobId> {
    let job = (*locked(&core.queue.in_hand))?;
    if let Err(error) = core.store.give_back(job) {
        tracing::error!(%job, %error, "the job in hand cannot be put back; its try counts");
    }
    Some(job)
}
