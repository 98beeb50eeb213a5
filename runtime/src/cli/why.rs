//! `scanside why`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use firmware_config::{Manifest, MissingViews};
use runtime::ingest::rules::{Decision, ObservedSeries, StudyDecision, decide_for, decide_study_for};
use runtime::plugin::Plugin;
use runtime::slots::Slots;
use runtime::volume::{Header, VolumeError};

use super::{Fault, config, say};

/// Tell for each task on this device which rule takes or refuses a series, and on what value.
#[derive(Args)]
pub struct Why {
    /// The series: a DICOM file, or a folder with one series or several, such as a study for a task of several views.
    series: PathBuf,
    /// The service's configuration.
    #[arg(long, value_name = "device.toml")]
    config: PathBuf,
    /// One line of JSON a series and task instead of text.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub fn run(self) -> Result<(), Fault> {
        let device = config::load(&self.config)?;
        let mut plugins = Vec::new();
        for (_, active) in Slots::new(&device.data_dir).active()? {
            plugins.push(Plugin::read(&active.path)?.0.manifest);
        }
        if plugins.is_empty() {
            return Err(Fault::Usage(format!(
                "no task runs on this device ({} has no active plugin); install one with `scanside plugin install` \
                 and `scanside plugin activate`",
                device.data_dir.display()
            )));
        }
        let rules_of = |manifest: &Manifest| {
            device.tasks.iter().find(|task| task.name == manifest.task.name).map(|task| &task.rules)
        };
        let all = self.series()?;
        for series in &all {
            if !self.json {
                say::line(&describe(series))?;
            }
            for manifest in &plugins {
                let decision = decide_for(manifest, rules_of(manifest), series);
                if self.json {
                    let line = serde_json::json!({ "series_uid": series.series_uid, "decision": decision });
                    say::line(&line.to_string())?;
                } else {
                    say::line(&explain(&decision))?;
                }
            }
        }
        self.studies(&all, |study| {
            let several = plugins.iter().filter(|manifest| !manifest.views.is_empty());
            several
                .map(|manifest| (manifest, decide_study_for(manifest, rules_of(manifest), study)))
                .collect()
        })
    }

    /// Tells of each study which of its series each task of several views takes for which.
    fn studies<'a>(
        &self,
        all: &[ObservedSeries],
        decide: impl Fn(&[ObservedSeries]) -> Vec<(&'a Manifest, StudyDecision)>,
    ) -> Result<(), Fault> {
        let mut studies: BTreeMap<&str, Vec<ObservedSeries>> = BTreeMap::new();
        for series in all {
            // One that names no study is alone.
            let key = series.study_uid.as_deref().unwrap_or(&series.series_uid);
            studies.entry(key).or_default().push(series.clone());
        }
        for series in studies.values() {
            let (study_uid, decisions) = (&series[0].study_uid, decide(series));
            if !self.json && !decisions.is_empty() {
                let named = study_uid.as_deref().unwrap_or("without a UID");
                say::line(&format!("study {named} ({} series)", series.len()))?;
            }
            for (manifest, StudyDecision { views, missing, .. }) in decisions {
                let task = &manifest.task.name;
                if self.json {
                    let decision = serde_json::json!({ "task": task, "views": views, "missing": missing });
                    say::line(
                        &serde_json::json!({ "study_uid": study_uid, "decision": decision }).to_string(),
                    )?;
                    continue;
                }
                say::line(&format!("  {task} {}", verdict(manifest.missing_views, &missing, views.len())))?;
                for view in manifest.views.keys() {
                    let mark = if views.contains_key(view) { "ok  " } else { "NO  " };
                    let series = views.get(view).map_or("no series".into(), |uid| format!("series {uid}"));
                    say::line(&format!("    {mark}{view}: {series}"))?;
                }
            }
        }
        Ok(())
    }

    /// What the headers say, series by series.
    fn series(&self) -> Result<Vec<ObservedSeries>, Fault> {
        let io = |source| Fault::Io { what: "read", path: self.series.clone(), source };
        let mut files = vec![self.series.clone()];
        if std::fs::metadata(&self.series).map_err(io)?.is_dir() {
            let entries =
                std::fs::read_dir(&self.series).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
            files = entries
                .map_err(io)?
                .into_iter()
                .map(|entry| entry.path())
                .filter(|path| path.is_file())
                .collect();
            files.sort();
        }
        let mut by_series: BTreeMap<String, Vec<Header>> = BTreeMap::new();
        for path in &files {
            match Header::read(path) {
                Ok(header) if header.is_image => {
                    by_series.entry(header.series_uid.clone().unwrap_or_default()).or_default().push(header);
                }
                Ok(_) => {}
                // Other files may lie in a folder.
                Err(VolumeError::Format { .. }) if files.len() > 1 => {}
                Err(error) => return Err(error.into()),
            }
        }
        let series: Vec<_> =
            by_series.values().filter_map(|headers| ObservedSeries::from_headers(headers)).collect();
        if series.is_empty() {
            let problem = "holds no DICOM image; give a DICOM file or a folder with a series".into();
            return Err(Fault::File { path: self.series.clone(), problem });
        }
        Ok(series)
    }
}

/// What becomes of a study.
fn verdict(missing_views: MissingViews, missing: &[String], found: usize) -> String {
    match (missing, missing_views) {
        ([], _) => "classifies it".into(),
        (missing, MissingViews::Pool) if found > 0 => {
            format!("waits for {}, and then classifies what is there", missing.join(", "))
        }
        (missing, _) if found > 0 => format!("waits for {}, and then refuses it", missing.join(", ")),
        _ => "does not take it".into(),
    }
}

fn describe(series: &ObservedSeries) -> String {
    let modality =
        if series.modality.is_empty() { "no modality".into() } else { series.modality.join(" and ") };
    format!("series {} ({modality}, {} slices)", series.series_uid, series.slices)
}

fn explain(decision: &Decision) -> String {
    let verdict = if decision.accepted { "takes it" } else { "does not take it" };
    let mut text = format!("  {} {verdict}", decision.task);
    let mut tell = |indent: &str, reason: &runtime::ingest::rules::Reason| {
        let mark = if reason.passed { "ok  " } else { "NO  " };
        text +=
            &format!("\n{indent}{mark}{}: asks for {}, found {}", reason.rule, reason.expected, reason.found);
    };
    for reason in &decision.reasons {
        tell("    ", reason);
    }
    for reason in decision.views.values().flatten() {
        tell("      ", reason);
    }
    text
}
