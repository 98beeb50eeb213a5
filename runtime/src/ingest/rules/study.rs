//! Tasks that look at several series of one study.

use std::collections::BTreeMap;

use firmware_config::{Accepts, Manifest, Rules};

use super::{Decision, ObservedSeries, decide, decide_for, views_that_differ};

/// Whether a task that needs several named views has a series for each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudyDecision {
    /// Series Instance UID by view, no series twice: what has been found for the views so far.
    pub views: BTreeMap<String, String>,
    /// The views that still wait for a series.
    pub missing: Vec<String>,
    /// What was said of each series, by Series Instance UID.
    pub decisions: BTreeMap<String, Decision>,
}

impl StudyDecision {
    /// Whether no view waits.
    pub fn ready(&self) -> bool {
        self.missing.is_empty() && !self.views.is_empty()
    }
}

impl StudyDecision {
    /// The view that a series is taken for.
    pub fn view_of(&self, series_uid: &str) -> Option<&str> {
        self.views.iter().find(|(_, uid)| *uid == series_uid).map(|(view, _)| view.as_str())
    }
}

/// Gives each view of `rules` one of the complete series of a study, so that as many views as possible have one.
///
/// Where several series fit a view, the one with more slices is preferred, then the lesser Series Instance UID; the
/// order of `study` does not matter. Series of other studies than the first's are passed over.
pub fn decide_study(
    task: &str,
    accepts: Option<&Accepts>,
    rules: &Rules,
    study: &[ObservedSeries],
) -> StudyDecision {
    let mut series: Vec<&ObservedSeries> = study.iter().collect();
    series.retain(|s| study.first().is_some_and(|first| s.study_uid == first.study_uid));
    series.sort_by(|a, b| b.slices.cmp(&a.slices).then_with(|| a.series_uid.cmp(&b.series_uid)));
    let decisions: Vec<Decision> = series.iter().map(|s| decide(task, accepts, Some(rules), s)).collect();
    let names: Vec<&String> = rules.views.keys().collect();
    let fits = |view: usize, series: usize| {
        let decision = &decisions[series];
        decision.accepted && decision.fitting_views().any(|fitting| fitting == names[view])
    };
    // A greatest matching by augmenting paths: views are few.
    let mut taken: Vec<Option<usize>> = vec![None; series.len()];
    for view in 0..names.len() {
        let mut seen = vec![false; series.len()];
        augment(view, &fits, &mut taken, &mut seen);
    }
    let mut views = BTreeMap::new();
    for (series, view) in series.iter().zip(&taken) {
        if let Some(view) = view {
            views.insert(names[*view].clone(), series.series_uid.clone());
        }
    }
    let missing = names.into_iter().filter(|view| !views.contains_key(*view)).cloned().collect();
    let uids = series.iter().map(|s| s.series_uid.clone());
    StudyDecision { missing, views, decisions: uids.zip(decisions).collect() }
}

/// As [`decide_study`], for an installed plugin of several views; without rules for just its views it takes nothing, see
/// [`decide_for`].
pub fn decide_study_for(
    manifest: &Manifest,
    rules: Option<&Rules>,
    study: &[ObservedSeries],
) -> StudyDecision {
    let default = Rules::default();
    let rules = rules.unwrap_or(&default);
    if !views_that_differ(manifest, Some(rules)).is_empty() {
        let decide =
            |series: &ObservedSeries| (series.series_uid.clone(), decide_for(manifest, Some(rules), series));
        let decisions = study.iter().map(decide).collect();
        let missing = manifest.views.keys().cloned().collect();
        return StudyDecision { views: BTreeMap::new(), missing, decisions };
    }
    decide_study(&manifest.task.name, manifest.accepts.as_ref(), rules, study)
}

/// Finds a series for `view`, moving other views to other series where that helps.
fn augment(
    view: usize,
    fits: &dyn Fn(usize, usize) -> bool,
    taken: &mut [Option<usize>],
    seen: &mut [bool],
) -> bool {
    for series in 0..taken.len() {
        if seen[series] || !fits(view, series) {
            continue;
        }
        seen[series] = true;
        if taken[series].is_none_or(|other| augment(other, fits, taken, seen)) {
            taken[series] = Some(view);
            return true;
        }
    }
    false
}
