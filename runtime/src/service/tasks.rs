//! The tasks that run here: the active plugins of the slots, loaded, and the device's rules for them.
//!
//! A plugin that goes live while the service runs is noticed by its file, which activation renames into its place; what
//! is under way ends with the plugin that it began with. One that cannot be loaded is told and does not keep the others
//! from running.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use firmware_config::device::TaskRules;
use firmware_config::{Rules, Task};

use crate::Error;
use crate::infer::LoadedTask;
use crate::ingest::rules::{
    Decision, ObservedSeries, StudyDecision, decide_for, decide_study_for, may_accept,
};
use crate::slots::Slots;
use crate::volume::Header;

/// See the module's description.
pub struct Tasks {
    slots: Slots,
    backbone: PathBuf,
    threads: usize,
    table: RwLock<BTreeMap<String, Entry>>,
    rules: RwLock<BTreeMap<String, Rules>>,
    /// Held while plugins are loaded, which takes seconds, so that it is done once.
    loading: Mutex<()>,
}

#[derive(Clone)]
struct Entry {
    stamp: Stamp,
    state: Result<Arc<LoadedTask>, String>,
}

/// Tells one file from another that was put in its place.
type Stamp = (u64, u64, i64, i64);

fn stamp(file: &Metadata) -> Stamp {
    (file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

impl Tasks {
    /// Nothing is loaded before [`Self::refresh`].
    pub fn new(data_dir: &Path, backbone: &Path, threads: usize, rules: &[TaskRules]) -> Self {
        let this = Self {
            slots: Slots::new(data_dir),
            backbone: backbone.to_owned(),
            threads,
            table: RwLock::default(),
            rules: RwLock::default(),
            loading: Mutex::default(),
        };
        this.set_rules(rules);
        this
    }

    /// Takes the device's rules over, from the next decision on.
    pub fn set_rules(&self, rules: &[TaskRules]) {
        let rules = rules.iter().map(|task| (task.name.clone(), task.rules.clone())).collect();
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = rules;
    }

    /// Loads what has gone live since the last time, and drops what was taken away; whether anything changed.
    ///
    /// # Errors
    /// If the slots cannot be listed; a plugin that cannot be loaded is in [`Self::failed`].
    pub fn refresh(&self) -> Result<bool, Error> {
        let _one = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.table();
        let mut after = BTreeMap::new();
        for (name, path) in self.slots.active()? {
            // Gone again since it was listed.
            let Ok(file) = std::fs::metadata(&path) else { continue };
            let stamp = stamp(&file);
            let kept = before.get(&name).filter(|entry| entry.stamp == stamp).cloned();
            let entry = kept.unwrap_or_else(|| Entry { stamp, state: self.load(&name, &path) });
            after.insert(name, entry);
        }
        let same = |(a, b): (&String, &Entry)| before.get(a).is_some_and(|entry| entry.stamp == b.stamp);
        let changed = after.len() != before.len() || !after.iter().all(same);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(changed)
    }

    fn load(&self, name: &str, path: &Path) -> Result<Arc<LoadedTask>, String> {
        let loaded = LoadedTask::merge(&self.backbone, path, self.threads).map_err(|error| error.to_string());
        let loaded = loaded.and_then(|loaded| {
            let named = &loaded.plugin.manifest.task.name;
            if named == name {
                return Ok(Arc::new(loaded));
            }
            Err(format!(
                "{} holds a plugin of task {named}, expected one of {name}; install it again",
                path.display()
            ))
        });
        match &loaded {
            Ok(task) => {
                let Task { name, version } = &task.plugin.manifest.task;
                tracing::info!(task = name, version, plugin = task.plugin_sha256, "task loaded");
                if task.plugin.manifest.accepts.is_none() {
                    tracing::warn!(task = name, "gets no series: its manifest does not say which it accepts");
                }
            }
            Err(error) => tracing::error!(task = name, error, "a task cannot be run"),
        }
        loaded
    }

    fn table(&self) -> BTreeMap<String, Entry> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tasks that run, by name.
    pub fn current(&self) -> Vec<Arc<LoadedTask>> {
        self.table().into_values().filter_map(|entry| entry.state.ok()).collect()
    }

    /// The active plugins that cannot be run, by the names of their tasks, and why not.
    pub fn failed(&self) -> Vec<(String, String)> {
        let failed = self.table().into_iter().filter_map(|(name, entry)| Some((name, entry.state.err()?)));
        failed.collect()
    }

    /// Names and versions of the tasks that run.
    pub fn names(&self) -> Vec<Task> {
        self.current().iter().map(|task| task.plugin.manifest.task.clone()).collect()
    }

    /// What each task says to a series that is complete.
    pub fn decide(&self, series: &ObservedSeries) -> Vec<(Arc<LoadedTask>, Decision)> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let one = |task: Arc<LoadedTask>| {
            let manifest = &task.plugin.manifest;
            let decision = decide_for(manifest, rules.get(&manifest.task.name), series);
            (task, decision)
        };
        self.current().into_iter().map(one).collect()
    }

    /// Which of a study's complete series a task of several views takes for which, and how long it waits for the others.
    pub fn decide_study(&self, task: &LoadedTask, study: &[ObservedSeries]) -> (StudyDecision, Duration) {
        let manifest = &task.plugin.manifest;
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let rules = rules.get(&manifest.task.name);
        (decide_study_for(manifest, rules, study), rules.map(Rules::views_wait).unwrap_or_default())
    }

    /// The tasks that may take the series of this image, and take it slice by slice.
    pub fn early(&self, image: &Header) -> Vec<Arc<LoadedTask>> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let may = |task: &Arc<LoadedTask>| {
            let manifest = &task.plugin.manifest;
            manifest.is_streamable()
                && may_accept(manifest.accepts.as_ref(), rules.get(&manifest.task.name), image)
        };
        self.current().into_iter().filter(may).collect()
    }
}
