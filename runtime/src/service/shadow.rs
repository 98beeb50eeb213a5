//! Candidates that run beside the active plugins on live series, for comparison only.
//!
//! A series is shown to a candidate after the active plugin's result is stored, by one thread that gives way to every series that
//! is worked on: it asks before each slice, so that a live slice waits for one of these at most. What the candidate says goes
//! out as a result of kind `shadow`, and then into the statistics of `slots.json`.
//!
//! What waits to be shown is in memory only, and a bounded number of it: after a restart, or where series come faster than they
//! can be shown, some are left out and do not count. None counts twice: a series is offered once, when it ends in its first final
//! result, and a power cut between message and statistics leaves the message, which does not count.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

use super::core::{Core, locked};
use super::jobs::{Trouble, observed};
use super::series::{Refused, headers, read};
use super::studies;
use crate::Error;
use crate::infer::LoadedTask;
use crate::result::{Kind, TaskResult};
use crate::slots::{Comparison, SlotError, Verdict};
use crate::store::Job;

/// Series that may wait to be shown.
const MOST: usize = 64;

/// What is to be shown to candidates.
#[derive(Default)]
pub(super) struct Shadows {
    queue: Mutex<VecDeque<Work>>,
    changed: Condvar,
}

/// A series that the active plugin has classified.
struct Work {
    job: Job,
    active: TaskResult,
}

impl Shadows {
    /// Looks whether the service is to end.
    pub fn wake(&self) {
        // Whoever is about to wait has then seen it.
        drop(locked(&self.queue));
        self.changed.notify_all();
    }

    fn next(&self, core: &Core) -> Option<Work> {
        let mut queue = locked(&self.queue);
        loop {
            if core.queue.is_stopping() {
                return None;
            }
            if let Some(work) = queue.pop_front() {
                return Some(work);
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The results of a job are durable: those that count are shown to the candidates of their tasks.
pub(super) fn offer(core: &Core, job: &Job, results: &[TaskResult]) {
    for result in results {
        let is_first = || {
            let replaced = result.replaces.as_ref().map(|id| core.store.result(id));
            replaced.is_none_or(|stored| {
                stored.is_ok_and(|stored| stored.is_some_and(|s| s.kind == Kind::Refused))
            })
        };
        if result.kind != Kind::Final || core.tasks.candidate(&result.task.name).is_none() || !is_first() {
            continue;
        }
        let mut queue = locked(&core.shadows.queue);
        if queue.len() < MOST {
            queue.push_back(Work { job: job.clone(), active: result.clone() });
            core.shadows.changed.notify_all();
        } else {
            tracing::debug!(job = %job.id, "a series is not shown to a candidate: too many wait");
        }
    }
}

/// Until the service stops.
pub(super) fn run(core: &Core) {
    while let Some(work) = core.shadows.next(core) {
        if !core.stand_back() {
            return;
        }
        let task = work.active.task.name.as_str();
        let job = work.job.id;
        match catch_unwind(AssertUnwindSafe(|| one(core, &work))) {
            // The second: another plugin is active by now, or another the candidate.
            Ok(Ok(()) | Err(Error::Slot(SlotError::Replaced { .. }))) => {}
            Ok(Err(error)) => {
                tracing::warn!(%job, task, %error, "a series could not be shown to a candidate");
            }
            Err(_) => {
                tracing::error!(%job, task, "showing a series to a candidate panicked");
                let reason = "it brought the program into a state that it does not know; its log says where";
                give_up(core, &work, reason);
            }
        }
    }
}

fn one(core: &Core, work: &Work) -> Result<(), Error> {
    let task = &work.active.task.name;
    let Some(candidate) = core.tasks.candidate(task) else { return Ok(()) };
    let (near, Some(candidate)) = (candidate.near, candidate.task) else { return Ok(()) };
    let result = match classify(core, &work.job, &candidate) {
        Ok(Some(result)) => result,
        Ok(None) | Err(Refused::Trouble(Trouble::Stopped)) => return Ok(()),
        Err(Refused::Trouble(Trouble::Failed(reason))) => {
            if !core.queue.is_stopping() {
                tracing::warn!(job = %work.job.id, task, reason, "a series could not be shown to a candidate");
            }
            return Ok(());
        }
        Err(Refused::Series(reason)) => {
            let reason =
                format!("it could not classify a series that the active plugin has classified: {reason}");
            give_up(core, work, &reason);
            return Ok(());
        }
    };
    core.store.enqueue(&[core.message(&result)], core.clock.wall())?;
    core.count(Kind::Shadow);
    core.wake_session();
    let Some(comparison) = Comparison::of(&work.active.labels, &result.labels, near) else {
        give_up(core, work, "it has no label in common with the active plugin");
        return Ok(());
    };
    let active = &work.active.provenance.plugin_sha256;
    let slots = core.tasks.slots();
    match slots.count_shadow(task, &candidate.plugin_sha256, active, &comparison)? {
        Verdict::Waits => {}
        Verdict::Promote => tracing::info!(task, "a candidate did well in the shadow and is to be promoted"),
        Verdict::AsksOperator => tracing::info!(task, "a candidate has been in the shadow for long enough"),
        Verdict::GiveUp(reason) => tracing::warn!(task, reason, "a candidate is given up"),
    }
    Ok(())
}

/// What a candidate says of a series, or of the study that it is of; none where it does not take it.
fn classify(core: &Core, job: &Job, candidate: &LoadedTask) -> Result<Option<TaskResult>, Refused> {
    let go_on = || core.stand_back();
    let mut context = core.context(job.completion);
    (context.kind, context.revision) = (Kind::Shadow, job.revision);
    if !candidate.plugin.manifest.views.is_empty() {
        return studies::beside(core, job, candidate, &context, &go_on);
    }
    let headers = headers(core, &job.series_uid, &job.instances)?;
    if !observed(&headers).is_some_and(|series| core.tasks.accepts(candidate, &series)) {
        return Ok(None);
    }
    let volume = read(&job.instances)?;
    let prepared = candidate.prepare(0, &volume)?;
    Ok(Some(candidate.classify_while(&[Some(&prepared)], &context, &go_on)?.result))
}

fn give_up(core: &Core, work: &Work, reason: &str) {
    let task = &work.active.task.name;
    let Some(candidate) = core.tasks.candidate(task).and_then(|candidate| candidate.task) else { return };
    tracing::warn!(task, reason, "a candidate is given up");
    if let Err(error) = core.tasks.slots().fail_candidate_if(task, &candidate.plugin_sha256, reason) {
        tracing::warn!(task, %error, "that a candidate has failed cannot be written down");
    }
}
