//! Tasks that look at several series of a study.
//!
//! The job of a series does not answer them: it leaves a job of that task alone in the queue, which waits until the study has a
//! series for each view, or for as long as the device's rules say. One result answers all series that it is about, and ends their
//! jobs with its own.
//!
//! Nothing of a study is computed before it is complete. One that waits while the plugin is changed is therefore classified by the
//! plugin that is active when its last series is there, all views of it; where the task was taken off meanwhile, it is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use firmware_config::MissingViews;
use firmware_config::device::show_duration;

use super::core::Core;
use super::jobs::{Trouble, input};
use super::series::{Refused, headers, milliseconds, read, received};
use crate::Error;
use crate::infer::{Context, LoadedTask};
use crate::ingest::rules::{ObservedSeries, StudyDecision};
use crate::recipe::Prepared;
use crate::result::{Input, TaskResult, ViewInput};
use crate::store::{Job, StudySeries, Wait};
use crate::volume::{Header, Volume};

/// What a task of several views says in a job about a study.
pub(super) struct Answer {
    /// None where it has been said already.
    pub result: Option<TaskResult>,
    /// The series other than the job's that it is about.
    pub also: Vec<String>,
}

/// The complete series of a study, and which of them a task takes.
struct Study {
    series: BTreeMap<String, StudySeries>,
    decision: StudyDecision,
    wait: Duration,
}

impl Study {
    fn of(core: &Core, job: &Job, task: &LoadedTask) -> Result<Self, Error> {
        let mut series = BTreeMap::new();
        let mut observed = Vec::new();
        for one in core.store.study(&job.series_uid)? {
            let headers = headers(core, &one.series_uid, &one.instances)?;
            let headers: Vec<Header> = headers.iter().map(|header| (**header).clone()).collect();
            if let Some(mut one) = ObservedSeries::from_headers(&headers) {
                // The store has put them together already.
                one.study_uid.clone_from(&job.study_uid);
                observed.push(one);
            }
            series.insert(one.series_uid.clone(), one);
        }
        let (decision, wait) = core.tasks.decide_study(task, &observed);
        Ok(Self { series, decision, wait })
    }

    /// The series of a view, where there is one.
    fn given(&self, view: &str) -> Option<&StudySeries> {
        self.series.get(self.decision.views.get(view)?)
    }
}

/// The job that a task of several views is to have about the study of a series.
pub(super) fn wait(core: &Core, job: &Job, task: &LoadedTask) -> Wait {
    let now = core.clock.wall();
    let until = match Study::of(core, job, task) {
        Ok(study) if study.decision.ready() => now,
        Ok(study) => now.saturating_add(i64::try_from(study.wait.as_millis()).unwrap_or(i64::MAX)),
        // What is the matter with another series must not keep this one from what other tasks say of it.
        Err(error) => {
            tracing::warn!(job = %job.id, %error, "a study cannot be looked at");
            now
        }
    };
    Wait { task: task.plugin.manifest.task.name.clone(), until }
}

/// What a task says of the study, as far as it is there: the job does not wait any longer.
pub(super) fn classify(
    core: &Core,
    job: &Job,
    task: &Arc<LoadedTask>,
    mut context: Context,
) -> Result<Answer, Trouble> {
    let study = Study::of(core, job, task)?;
    let manifest = &task.plugin.manifest;
    let name = &manifest.task.name;
    if study.decision.view_of(&job.series_uid).is_none() {
        let reason = "for each view that the series fits, another one of its study is taken".to_owned();
        let said = said(core, name, [&job.replaces])?;
        // What was said of the study is for the study's next result to replace.
        let alone = said.iter().find(|result| result.input.views.is_empty());
        context.replaces = alone.map(|result| result.result_id.clone());
        context.revision = next_revision(&said);
        let result = task.refusal(&input(job, &context), reason, &context);
        return Ok(Answer { result: Some(result), also: Vec::new() });
    }
    let given: BTreeMap<&str, &StudySeries> =
        manifest.views.keys().filter_map(|view| Some((view.as_str(), study.given(view)?))).collect();
    let said = said(core, name, given.values().map(|series| &series.results))?;
    let last = said.iter().max_by_key(|result| (!result.input.views.is_empty(), result.revision));
    context.replaces = last.map(|last| last.result_id.clone());
    context.revision = next_revision(&said);
    let views = given.iter().map(|(view, series)| ((*view).to_owned(), view_input(series))).collect();
    let of_study = Input::study(job.study_uid.clone(), views, &context);
    let is_said = last.is_some_and(|last| {
        let of_all = given.values().all(|series| series.results.get(name) == Some(&last.result_id));
        of_all && last.input.digest == of_study.digest && last.provenance.plugin_sha256 == task.plugin_sha256
    });
    if is_said {
        return Ok(Answer { result: None, also: Vec::new() });
    }
    let also = given.values().map(|series| series.series_uid.clone());
    let also = also.filter(|uid| *uid != job.series_uid).collect();
    let result = if study.decision.ready() || manifest.missing_views == MissingViews::Pool {
        match volumes(core, task, &given, &context, &|| true) {
            Ok(result) => result,
            Err(Refused::Trouble(trouble)) => return Err(trouble),
            Err(Refused::Series(reason)) => task.refusal(&of_study, reason, &context),
        }
    } else {
        let waited = job.study.as_ref().map_or(0, |of| core.clock.wall().saturating_sub(of.since));
        let missing = study.decision.missing.join(", ");
        let reason = format!("the study had no series for the view {missing} within {}", coarse(waited));
        task.refusal(&of_study, reason, &context)
    };
    Ok(Answer { result: Some(result), also })
}

/// What a candidate says of the study of a job that the active plugin has answered; none where it does not take it. `go_on` as
/// by [`LoadedTask::classify_while`].
pub(super) fn beside(
    core: &Core,
    job: &Job,
    task: &LoadedTask,
    context: &Context,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<Option<TaskResult>, Refused> {
    let study = Study::of(core, job, task)?;
    let manifest = &task.plugin.manifest;
    let enough = study.decision.ready() || manifest.missing_views == MissingViews::Pool;
    if study.decision.view_of(&job.series_uid).is_none() || !enough {
        return Ok(None);
    }
    let given: BTreeMap<&str, &StudySeries> =
        manifest.views.keys().filter_map(|view| Some((view.as_str(), study.given(view)?))).collect();
    volumes(core, task, &given, context, go_on).map(Some)
}

/// From the volumes of the views that are there.
fn volumes(
    core: &Core,
    task: &LoadedTask,
    given: &BTreeMap<&str, &StudySeries>,
    context: &Context,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<TaskResult, Refused> {
    let start = Instant::now();
    let mut volumes: Vec<Option<Volume>> = Vec::new();
    for view in task.plugin.manifest.views.keys() {
        if core.queue.is_stopping() {
            return Err(Refused::Trouble(Trouble::Stopped));
        }
        let volume = given.get(view.as_str()).map(|series| read(&series.instances)).transpose();
        volumes.push(volume.map_err(|refused| match refused {
            Refused::Series(reason) => Refused::Series(format!("view {view}: {reason}")),
            trouble @ Refused::Trouble(_) => trouble,
        })?);
    }
    let read = start.elapsed();
    let start = Instant::now();
    let volumes: Vec<Option<&Volume>> = volumes.iter().map(Option::as_ref).collect();
    let prepared = task.prepare_views(&volumes)?;
    let prepare = start.elapsed();
    let start = Instant::now();
    let prepared: Vec<Option<&Prepared<'_>>> = prepared.iter().map(Option::as_ref).collect();
    let mut result = task.classify_while(&prepared, context, go_on)?.result;
    for (name, time) in [("read", read), ("prepare", prepare), ("encode", start.elapsed())] {
        result.timings_ms.insert(name.into(), milliseconds(time));
    }
    Ok(result)
}

fn view_input(series: &StudySeries) -> ViewInput {
    ViewInput {
        series_uid: Some(series.series_uid.clone()),
        instances: series.instances.len(),
        digest: received(&series.instances),
    }
}

/// What a task has said last of each of some series, without a result twice; what is no longer kept is passed over.
fn said<'a>(
    core: &Core,
    task: &str,
    series: impl IntoIterator<Item = &'a BTreeMap<String, String>>,
) -> Result<Vec<TaskResult>, Error> {
    let ids: BTreeSet<&String> = series.into_iter().filter_map(|results| results.get(task)).collect();
    let mut said = Vec::new();
    for id in ids {
        let stored = core.store.result(id)?;
        // An older build may have written what this one cannot read.
        said.extend(stored.and_then(|stored| serde_json::from_str::<TaskResult>(&stored.json).ok()));
    }
    Ok(said)
}

/// The revision after all of these.
fn next_revision(said: &[TaskResult]) -> u32 {
    said.iter().map(|result| result.revision + 1).max().unwrap_or(0)
}

/// The context of what a task of several views says of a series alone that was part of a study's result.
pub(super) fn revised(core: &Core, job: &Job, task: &str, mut context: Context) -> Result<Context, Error> {
    context.revision = next_revision(&said(core, task, [&job.replaces])?);
    Ok(context)
}

/// A time in ms, to the second or minute, and no less than a second.
fn coarse(ms: i64) -> String {
    let s = u64::try_from(ms).unwrap_or(0).max(1000) / 1000;
    show_duration(Duration::from_secs(if s < 120 { s } else { s - s % 60 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_finely_as_they_matter() {
        for (ms, expected) in
            [(-5, "1s"), (1_900, "1s"), (119_999, "119s"), (3_659_000, "1h"), (150_000, "2min")]
        {
            assert_eq!(coarse(ms), expected);
        }
    }
}
