//! Which task takes which series, and why not: every rule with what it asked for and what it found.
//!
//! Two bounds hold together. The plugin's signed manifest says what it may be given at all (its `accepts`; a plugin
//! without it is never run by the service); the device's [`Rules`] narrow that. Nothing here looks at pixels, and no
//! rule is skipped because another has refused already, so that an operator sees all reasons at once.

mod observed;
mod study;

use std::collections::BTreeMap;

use firmware_config::{Accepts, Manifest, Pattern, Plane, Rules};

pub use observed::ObservedSeries;
pub use study::{StudyDecision, decide_study, decide_study_for};

use crate::volume::Header;

/// What one rule asked for, and what it found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// The rule: `accepts.…` in the plugin's manifest, `rules.…` in the device's configuration.
    pub rule: String,
    /// What it asks for.
    pub expected: String,
    /// What the series says.
    pub found: String,
    /// Whether it is fulfilled.
    pub passed: bool,
    /// Whether `found` is free text that a site may have written anything into: for an operator's screen, never for
    /// logs or results.
    pub free_text: bool,
}

impl Reason {
    /// One sentence that may be logged and published.
    pub fn sentence(&self) -> String {
        let Self { rule, expected, found, .. } = self;
        let found = if self.free_text { "what the series says" } else { found };
        let verdict = if self.passed { "fits" } else { "does not fit" };
        format!("{rule} asks for {expected}, and {found} {verdict}")
    }
}

/// Whether a task takes a series.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Decision {
    /// The task's name.
    pub task: String,
    /// Whether every reason has passed.
    pub accepted: bool,
    /// Every rule that asks for something, passed or not.
    pub reasons: Vec<Reason>,
    /// For a task of several views, what each view's rules say; one of them must have passed as a whole.
    pub views: BTreeMap<String, Vec<Reason>>,
}

impl Decision {
    /// The sentences of the rules that refused.
    pub fn refusals(&self) -> Vec<String> {
        self.reasons.iter().filter(|reason| !reason.passed).map(Reason::sentence).collect()
    }

    /// The views that the series would fit, in the order of their names.
    pub fn fitting_views(&self) -> impl Iterator<Item = &str> {
        let fits = |reasons: &Vec<Reason>| reasons.iter().all(|reason| reason.passed);
        self.views.iter().filter(move |(_, reasons)| fits(reasons)).map(|(view, _)| view.as_str())
    }
}

/// Whether `task` takes a series, by its manifest's `accepts` and the device's rules for it, if it has any.
pub fn decide(
    task: &str,
    accepts: Option<&Accepts>,
    rules: Option<&Rules>,
    series: &ObservedSeries,
) -> Decision {
    let default = Rules::default();
    let rules = rules.unwrap_or(&default);
    let mut reasons = by_manifest(accepts, series);
    reasons.extend(by_device("rules", rules, series));
    let views: BTreeMap<String, Vec<Reason>> = rules
        .views
        .iter()
        .map(|(view, rules)| (view.clone(), by_device(&format!("rules.views.{view}"), rules, series)))
        .collect();
    let mut decision = Decision { task: task.to_owned(), accepted: false, reasons, views };
    if !rules.views.is_empty() {
        let fitting: Vec<&str> = decision.fitting_views().collect();
        let names: Vec<&str> = rules.views.keys().map(String::as_str).collect();
        let expected = format!("a series for one of the views {}", names.join(", "));
        let (passed, found) = match &fitting[..] {
            [] => (false, "one for none of them".to_owned()),
            views => (true, format!("one for {}", views.join(", "))),
        };
        decision.reasons.push(reason("rules.views", expected, found, passed));
    }
    decision.accepted = decision.reasons.iter().all(|reason| reason.passed);
    decision
}

/// As [`decide`], for an installed plugin. The device's rules must name the plugin's views, each and no other: without that the
/// plugin takes no series, rather than one for a view that it does not belong to.
pub fn decide_for(manifest: &Manifest, rules: Option<&Rules>, series: &ObservedSeries) -> Decision {
    let mut decision = decide(&manifest.task.name, manifest.accepts.as_ref(), rules, series);
    let wrong = views_that_differ(manifest, rules);
    decision.accepted &= wrong.is_empty();
    decision.reasons.extend(wrong);
    decision
}

/// Which views only one of plugin and rules knows.
pub fn views_that_differ(manifest: &Manifest, rules: Option<&Rules>) -> Vec<Reason> {
    let default = Rules::default();
    let (views, rules) = (&manifest.views, &rules.unwrap_or(&default).views);
    let wrong = |rule: &str, expected: &str, found: &str| reason(rule, expected.into(), found.into(), false);
    if views.is_empty() {
        let several = (!rules.is_empty())
            .then(|| wrong("rules.views", "a plugin of several views", "a plugin of one view"));
        return several.into_iter().collect();
    }
    let names = views.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let absent = views.keys().filter(|view| !rules.contains_key(*view)).map(|view| {
        let expected = format!("a table of the device that says which series the plugin's view {view} gets");
        wrong(&format!("rules.views.{view}"), &expected, "a configuration without it")
    });
    let unknown = rules.keys().filter(|view| !views.contains_key(*view)).map(|view| {
        wrong(&format!("rules.views.{view}"), &format!("one of the plugin's views {names}"), view)
    });
    absent.chain(unknown).collect()
}

/// Whether `task` may take the series that an image belongs to, by that image alone: what only the whole series can say
/// is not asked.
pub fn may_accept(accepts: Option<&Accepts>, rules: Option<&Rules>, image: &Header) -> bool {
    let Some(series) = ObservedSeries::from_headers(std::slice::from_ref(image)) else { return false };
    let accepts =
        accepts.map(|accepts| Accepts { min_slices: None, slice_spacing_mm: None, ..accepts.clone() });
    let rules = rules.map(|rules| Rules {
        min_slices: None,
        max_slices: None,
        slice_spacing_mm: None,
        views: BTreeMap::new(),
        ..rules.clone()
    });
    decide("", accepts.as_ref(), rules.as_ref(), &series).accepted
}

fn reason(rule: &str, expected: String, found: String, passed: bool) -> Reason {
    Reason { rule: rule.to_owned(), expected, found, passed, free_text: false }
}

const UNSAID: &str = "nothing said";

/// The outer bound. As in [`Accepts::refusals`], what a series does not say breaks no rule.
fn by_manifest(accepts: Option<&Accepts>, series: &ObservedSeries) -> Vec<Reason> {
    let Some(accepts) = accepts else {
        let expected = "a plugin whose signed manifest says which series it accepts".to_owned();
        return vec![reason("accepts", expected, "a manifest that does not say".to_owned(), false)];
    };
    let mut out = Vec::new();
    words(&mut out, "accepts.modality", &accepts.modality, &series.modality, true);
    words(&mut out, "accepts.body_part", &accepts.body_part, &series.body_part, true);
    planes(&mut out, "accepts.plane", &accepts.plane, &series.plane, true);
    let spacing = series.slice_spacing_mm.map(|mm| [mm, mm]);
    range(&mut out, "accepts.slice_spacing_mm", accepts.slice_spacing_mm, spacing, true);
    slices(&mut out, "accepts.min_slices", accepts.min_slices, None, series.slices);
    out
}

/// The device's bound; what it asks for must be said.
fn by_device(place: &str, rules: &Rules, series: &ObservedSeries) -> Vec<Reason> {
    let mut out = Vec::new();
    let name = |rule: &str| format!("{place}.{rule}");
    words(&mut out, &name("modality"), &rules.modality, &series.modality, false);
    words(&mut out, &name("body_part"), &rules.body_part, &series.body_part, false);
    patterns(&mut out, &name("description"), &rules.description, &series.description, true);
    patterns(&mut out, &name("exclude_description"), &rules.exclude_description, &series.description, false);
    planes(&mut out, &name("plane"), &rules.plane, &series.plane, false);
    range(&mut out, &name("slice_thickness_mm"), rules.slice_thickness_mm, series.slice_thickness_mm, false);
    let spacing = series.slice_spacing_mm.map(|mm| [mm, mm]);
    range(&mut out, &name("slice_spacing_mm"), rules.slice_spacing_mm, spacing, false);
    patterns(&mut out, &name("kernel"), &rules.kernel, &series.kernel, true);
    patterns(&mut out, &name("exclude_kernel"), &rules.exclude_kernel, &series.kernel, false);
    if let Some(asked) = rules.contrast {
        let say = |yes: bool| if yes { "a contrast agent" } else { "no contrast agent" }.to_owned();
        let passed = asked == series.contrast;
        out.push(reason(&name("contrast"), say(asked), say(series.contrast), passed));
    }
    slices(&mut out, &name("min_slices"), rules.min_slices, None, series.slices);
    slices(&mut out, &name("max_slices"), None, rules.max_slices, series.slices);
    if !rules.exclude_image_type.is_empty() {
        let excluded = |value: &&String| rules.exclude_image_type.iter().any(|x| same(x, value));
        let found: Vec<&str> = series.image_type.iter().filter(excluded).map(String::as_str).collect();
        let expected = format!("no image of type {}", rules.exclude_image_type.join(", "));
        let passed = found.is_empty();
        let found = if passed { "none".to_owned() } else { found.join(", ") };
        out.push(reason(&name("exclude_image_type"), expected, found, passed));
    }
    out
}

fn same(a: &str, b: &str) -> bool {
    a.trim().eq_ignore_ascii_case(b.trim())
}

/// Every value that the series has must be allowed.
fn words(out: &mut Vec<Reason>, rule: &str, allowed: &[String], found: &[String], unsaid_passes: bool) {
    if allowed.is_empty() {
        return;
    }
    let passed = match found {
        [] => unsaid_passes,
        found => found.iter().all(|found| allowed.iter().any(|a| same(a, found))),
    };
    out.push(reason(rule, allowed.join(" or "), list(found), passed));
}

fn planes(out: &mut Vec<Reason>, rule: &str, allowed: &[Plane], found: &[Plane], unsaid_passes: bool) {
    let text = |planes: &[Plane]| planes.iter().map(|p| format!("{p:?}").to_lowercase()).collect::<Vec<_>>();
    words(out, rule, &text(allowed), &text(found), unsaid_passes);
}

/// One value at least fits a pattern (`wanted`), or none does.
fn patterns(out: &mut Vec<Reason>, rule: &str, patterns: &[Pattern], found: &[String], wanted: bool) {
    if patterns.is_empty() {
        return;
    }
    let fits = found.iter().any(|text| patterns.iter().any(|pattern| pattern.matches(text)));
    let names = patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" or ");
    let expected = if wanted { names } else { format!("anything but {names}") };
    let free_text = !found.is_empty();
    out.push(Reason { free_text, ..reason(rule, expected, list(found), fits == wanted) });
}

fn range(
    out: &mut Vec<Reason>,
    rule: &str,
    asked: Option<[f64; 2]>,
    found: Option<[f64; 2]>,
    unsaid_passes: bool,
) {
    let Some([least, most]) = asked else { return };
    let (passed, found) = match found {
        None => (unsaid_passes, UNSAID.to_owned()),
        Some([low, high]) => {
            #[allow(clippy::float_cmp, reason = "equal where both are the same value")]
            let text = if low == high { format!("{low:.2} mm") } else { format!("{low:.2} to {high:.2} mm") };
            (least <= low && high <= most, text)
        }
    };
    out.push(reason(rule, format!("{least} to {most} mm"), found, passed));
}

fn slices(out: &mut Vec<Reason>, rule: &str, least: Option<usize>, most: Option<usize>, found: usize) {
    if let Some(least) = least {
        out.push(reason(rule, format!("{least} slices or more"), found.to_string(), found >= least));
    }
    if let Some(most) = most {
        out.push(reason(rule, format!("{most} slices or fewer"), found.to_string(), found <= most));
    }
}

fn list(values: &[String]) -> String {
    if values.is_empty() { UNSAID.to_owned() } else { values.join(" and ") }
}

#[cfg(test)]
mod tests;
