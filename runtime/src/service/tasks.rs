//! The tasks that run here: the active plugins of the slots, loaded, and the device's rules for them.
//!
//! A change of the slots while the service runs is noticed by `slots.json`. A plugin that goes live is loaded beside the one that
//! runs, and takes its place when it is ready; what is under way ends with the plugin that it began with. One that cannot be
//! loaded, or was taken down because it was at fault, is told and does not keep the others from running; series for it are
//! refused.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Duration;

use firmware_config::device::TaskRules;
use firmware_config::{Manifest, Rules, Task};

use crate::Error;
use crate::engine::{EngineInfo, Mode, Precision};
use crate::gate::{GateLimits, GateReport};
use crate::infer::{Context, LoadedTask, Loader, PluginRef};
use crate::ingest::rules::{
    Decision, ObservedSeries, StudyDecision, decide_for, decide_study_for, may_accept,
};
use crate::result::{Input, TaskResult};
use crate::slots::{Down, Placed, Slot, Slots, State, condemns};
use crate::volume::Header;

/// See the module's description.
pub struct Tasks {
    slots: Slots,
    loader: Arc<Loader>,
    table: RwLock<BTreeMap<String, Entry>>,
    /// The candidates that run beside them.
    shadows: RwLock<BTreeMap<String, Candidate>>,
    rules: RwLock<BTreeMap<String, Rules>>,
    /// Held while plugins are loaded, which takes seconds, so that it is done once.
    loading: Mutex<()>,
}

#[derive(Clone)]
struct Entry {
    stamp: Stamp,
    state: Result<Arc<LoadedTask>, Arc<Unfit>>,
}

/// A candidate that runs beside the active plugin.
#[derive(Clone)]
pub struct Candidate {
    placed: Placed,
    /// See [`crate::slots::Comparison::of`].
    pub near: f64,
    /// None where it cannot be loaded at present.
    pub task: Option<Arc<LoadedTask>>,
}

/// A task that cannot be run.
pub struct Unfit {
    /// Why not.
    pub reason: String,
    /// Its plugin, as far as it can be read.
    plugin: Option<(Manifest, Placed)>,
    threads: usize,
}

impl Unfit {
    /// What its plugin says of itself.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.plugin.as_ref().map(|(manifest, _)| manifest)
    }

    /// The result that says so; none where nothing is known of the plugin.
    pub fn refusal(&self, input: &Input, context: &Context) -> Option<TaskResult> {
        let (manifest, Placed { sha256, task, target }) = self.plugin.as_ref()?;
        let (target, engine) =
            (target.as_ref(), EngineInfo::here(Precision::F32, Mode::Merged, self.threads));
        let plugin = PluginRef { manifest, plugin_sha256: sha256, target, engine };
        let reason = format!("task {} cannot be run on this device: {}", task.name, self.reason);
        Some(plugin.refusal(input, reason, context))
    }
}

/// Tells what is to be loaded from what was.
#[derive(Debug, Clone, PartialEq)]
enum Stamp {
    /// The plugin, and its file, which may have been changed where it lies.
    Active(Placed, Option<(u64, u64, i64, i64)>),
    Down(Down),
    /// The slots cannot be read.
    Unreadable(String),
}

fn stamp(file: &Metadata) -> (u64, u64, i64, i64) {
    (file.ino(), file.size(), file.mtime(), file.mtime_nsec())
}

impl Tasks {
    /// Nothing is loaded before [`Self::refresh`].
    pub fn new(slots: Slots, loader: Arc<Loader>, rules: &[TaskRules]) -> Self {
        let this = Self {
            slots,
            loader,
            table: RwLock::default(),
            shadows: RwLock::default(),
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
        let mut names = Vec::new();
        let mut changed = false;
        let slots = self.slots.list()?;
        let running = |Slot { state, .. }: &Slot| {
            let state = state.as_ref().ok();
            state.map_or(0, |state| usize::from(state.active.is_some()) + usize::from(state.shadow.is_some()))
        };
        let running = slots.iter().map(running).sum();
        let stamps = slots.iter().filter_map(|Slot { name, state }| Some((name, self.stamp(state)?)));
        let stamps: Vec<_> = stamps.collect();
        let is_new =
            |(name, stamp): &(&String, Stamp)| before.get(*name).is_none_or(|entry| entry.stamp != *stamp);
        let mut to_load = stamps.iter().filter(|stamp| is_new(stamp)).count();
        for stamp in stamps {
            let is_new = is_new(&stamp);
            let (name, stamp) = stamp;
            if is_new {
                self.loader.expect(running, to_load);
                to_load -= 1;
                let state = self.load(name, &stamp);
                // The next one takes its time, and this one is ready.
                self.write_table().insert(name.clone(), Entry { stamp, state });
                changed = true;
            }
            names.push(name);
        }
        {
            let mut table = self.write_table();
            let all = table.len();
            table.retain(|name, _| names.contains(&name));
            changed |= table.len() != all;
        }
        self.loader.expect(running, 1);
        self.refresh_shadows(&slots);
        Ok(changed)
    }

    fn refresh_shadows(&self, slots: &[Slot]) {
        let before = self.read_shadows();
        let mut after = BTreeMap::new();
        for Slot { name, state } in slots {
            let Ok(State { candidate: Some(placed), active: Some(_), shadow: Some(run), .. }) = state else {
                continue;
            };
            let near = run.rule.max_difference;
            let known = before.get(name).filter(|known| known.placed == *placed);
            let task = known.map_or_else(|| self.load_candidate(name, placed), |known| known.task.clone());
            after.insert(name.clone(), Candidate { placed: placed.clone(), near, task });
        }
        *self.shadows.write().unwrap_or_else(PoisonError::into_inner) = after;
    }

    fn load_candidate(&self, name: &str, placed: &Placed) -> Option<Arc<LoadedTask>> {
        let version = &placed.task.version;
        match self.slots.load(placed, &self.loader) {
            Ok(task) => {
                tracing::info!(
                    task = name,
                    version,
                    plugin = placed.sha256,
                    "a candidate runs in the shadow"
                );
                Some(Arc::new(task))
            }
            Err(error) => {
                tracing::error!(task = name, version, %error, "a candidate cannot be run");
                if condemns(&error)
                    && let Err(error) = self.slots.fail_candidate_if(name, &placed.sha256, &error.to_string())
                {
                    tracing::warn!(task = name, %error, "that a candidate has failed cannot be written down");
                }
                None
            }
        }
    }

    fn read_shadows(&self) -> BTreeMap<String, Candidate> {
        self.shadows.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The candidate that runs beside a task's active plugin.
    pub fn candidate(&self, task: &str) -> Option<Candidate> {
        self.read_shadows().remove(task)
    }

    /// The plugins on the disk.
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Makes a task's candidate the active plugin, if it passes.
    pub fn promote(
        &self,
        task: &str,
        limits: &GateLimits,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<GateReport, Error> {
        let promoted = self.slots.activate_while(task, &self.loader, limits, go_on);
        promoted.map(|(_, report)| report)
    }

    /// None where nothing is to run.
    fn stamp(&self, state: &Result<State, Error>) -> Option<Stamp> {
        match state {
            Err(error) => Some(Stamp::Unreadable(error.to_string())),
            Ok(State { active: Some(placed), .. }) => {
                let file = std::fs::metadata(self.slots.installed(placed.clone()).path);
                Some(Stamp::Active(placed.clone(), file.ok().as_ref().map(self::stamp)))
            }
            Ok(State { down: Some(down), .. }) if down.by_fault => Some(Stamp::Down(down.clone())),
            Ok(_) => None,
        }
    }

    fn load(&self, name: &str, stamp: &Stamp) -> Result<Arc<LoadedTask>, Arc<Unfit>> {
        let unfit = |reason: String, placed: Option<&Placed>| {
            tracing::error!(task = name, error = reason, "a task cannot be run");
            let plugin = placed.and_then(|placed| {
                let plugin = self.slots.read(placed).ok()?;
                Some((plugin.manifest, placed.clone()))
            });
            Err(Arc::new(Unfit { reason, plugin, threads: self.loader.threads }))
        };
        let placed = match stamp {
            Stamp::Unreadable(reason) => return unfit(reason.clone(), None),
            Stamp::Down(Down { plugin, reason, at, .. }) => {
                return unfit(format!("it was taken down on {at}: {reason}"), Some(plugin));
            }
            Stamp::Active(placed, _) => placed,
        };
        let shadow = self.candidate(name).filter(|candidate| candidate.placed == *placed);
        let loaded = match shadow.and_then(|candidate| candidate.task) {
            Some(task) => Ok(task),
            None => self.slots.load_active(placed, &self.loader).map(Arc::new),
        };
        match loaded {
            Ok(task) => {
                let Task { name, version } = &task.plugin.manifest.task;
                let target = task.target.as_ref().map_or("unsigned", |target| &target.name);
                tracing::info!(task = name, version, plugin = task.plugin_sha256, target, "task loaded");
                if task.plugin.manifest.accepts.is_none() {
                    tracing::warn!(task = name, "gets no series: its manifest does not say which it accepts");
                }
                Ok(task)
            }
            Err(error) => unfit(error.to_string(), Some(placed)),
        }
    }

    fn table(&self) -> BTreeMap<String, Entry> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write_table(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Entry>> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tasks that run, by name.
    pub fn current(&self) -> Vec<Arc<LoadedTask>> {
        self.table().into_values().filter_map(|entry| entry.state.ok()).collect()
    }

    /// The tasks that are to run and cannot, by name.
    pub fn unfit(&self) -> Vec<(String, Arc<Unfit>)> {
        let unfit = self.table().into_iter().filter_map(|(name, entry)| Some((name, entry.state.err()?)));
        unfit.collect()
    }

    /// A task that nobody wants on this device any more, to what has waited for it.
    pub fn retired(&self, name: &str) -> Option<Unfit> {
        let Down { plugin, reason, at, .. } = self.slots.state(name).ok()??.down?;
        let manifest = self.slots.read(&plugin).ok()?.manifest;
        let reason = format!("it was taken down on {at}: {reason}");
        Some(Unfit { reason, plugin: Some((manifest, plugin)), threads: self.loader.threads })
    }

    /// The active plugins that cannot be run, by the names of their tasks, and why not.
    pub fn failed(&self) -> Vec<(String, String)> {
        self.unfit().into_iter().map(|(name, unfit)| (name, unfit.reason.clone())).collect()
    }

    /// Names and versions of the tasks that run.
    pub fn names(&self) -> Vec<Task> {
        self.current().iter().map(|task| task.plugin.manifest.task.clone()).collect()
    }

    /// The tasks that run, each in the version that a series began with, where it did.
    pub fn of_series(&self, began_with: &BTreeMap<String, Arc<LoadedTask>>) -> Vec<Arc<LoadedTask>> {
        let of =
            |task: Arc<LoadedTask>| began_with.get(&task.plugin.manifest.task.name).cloned().unwrap_or(task);
        self.current().into_iter().map(of).collect()
    }

    /// What each task says to a series that is complete; see [`Self::of_series`].
    pub fn decide(
        &self,
        series: &ObservedSeries,
        began_with: &BTreeMap<String, Arc<LoadedTask>>,
    ) -> Vec<(Arc<LoadedTask>, Decision)> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let one = |task: Arc<LoadedTask>| {
            let manifest = &task.plugin.manifest;
            let decision = decide_for(manifest, rules.get(&manifest.task.name), series);
            (task, decision)
        };
        self.of_series(began_with).into_iter().map(one).collect()
    }

    /// Whether a plugin that is not the active one would take a series.
    pub fn accepts(&self, task: &LoadedTask, series: &ObservedSeries) -> bool {
        let manifest = &task.plugin.manifest;
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        decide_for(manifest, rules.get(&manifest.task.name), series).accepted
    }

    /// The tasks that would take a complete series and cannot be run.
    pub fn unfit_for(&self, series: &ObservedSeries) -> Vec<(String, Arc<Unfit>)> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        let mut all = self.unfit();
        all.retain(|(name, unfit)| {
            unfit.manifest().is_some_and(|manifest| decide_for(manifest, rules.get(name), series).accepted)
        });
        all
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
