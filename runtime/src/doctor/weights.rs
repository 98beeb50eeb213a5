//! The backbones, and the plugins that are to run on them.

use std::path::{Path, PathBuf};

use firmware_config::device::{self, Device};
use firmware_config::{Manifest, Rules};

use super::Check;
use crate::Error;
use crate::backbone::{Backbone, BackboneError, Body};
use crate::ingest::rules::views_that_differ;
use crate::slots::{Down, Failed, Placed, Slot, Slots, State};

/// What lies on the box, or why it cannot be used.
pub(super) struct Weights {
    backbone: Result<Summary, BackboneError>,
    /// Those that came from the repository.
    fetched: Vec<(PathBuf, Result<Summary, BackboneError>)>,
    slots: Result<Vec<Task>, Error>,
}

/// Of a backbone, without its tensors: these take as much memory as the service's own.
struct Summary {
    name: String,
    sha256: String,
    /// Of its weights as f32.
    bytes: u64,
    /// How often an engine holds them.
    copies: u64,
}

struct Task {
    name: String,
    active: Option<Result<Manifest, Error>>,
    waiting: bool,
    /// Whether a candidate runs beside the active plugin.
    shadow: bool,
    /// What was taken down because it was at fault.
    down: Option<Down>,
    failed: Option<Failed>,
    unsigned: bool,
}

impl Summary {
    fn of(path: &Path) -> Result<Self, BackboneError> {
        let backbone = Backbone::open(path)?;
        Ok(Self {
            name: backbone.name(),
            bytes: backbone.tensors.values().map(|t| 4 * t.data.len() as u64).sum(),
            // The engine's own kernels hold weights once; tract beside those as it packs them.
            copies: if matches!(backbone.arch.body, Body::Vit(_)) { 1 } else { 2 },
            sha256: backbone.sha256,
        })
    }
}

impl Weights {
    pub fn read(device: &Device) -> Self {
        let backbone = Summary::of(&device.backbone);
        let slots = Slots::new(&device.data_dir);
        let fetched = slots.fetched_backbones().into_iter();
        let fetched = fetched.map(|path| (path.clone(), Summary::of(&path))).collect();
        let tasks = slots.list().map(|list| list.into_iter().map(|slot| task(&slots, slot)).collect());
        Self { backbone, fetched, slots: tasks }
    }

    fn tasks(&self) -> &[Task] {
        self.slots.as_deref().unwrap_or_default()
    }

    fn sound(&self) -> impl Iterator<Item = &Summary> {
        let fetched = self.fetched.iter().map(|(_, summary)| summary);
        std::iter::once(&self.backbone).chain(fetched).filter_map(|summary| summary.as_ref().ok())
    }

    /// Bytes that the service needs: each task holds its merged weights packed for the kernels, or all of them hold the same, and the one
    /// that is being loaded holds the graph besides (`tests/tests/memory.rs` holds `infer` to that, `shared_memory.rs` the service).
    pub fn memory(&self, device: &Device) -> Option<u64> {
        let (bytes, copies) = self.sound().map(|summary| (summary.bytes, summary.copies)).max()?;
        let loaded = |task: &Task| u64::from(task.active.is_some()) + u64::from(task.shadow);
        let loaded: u64 = self.tasks().iter().map(loaded).sum();
        // `auto` shares before memory becomes short; what tract holds cannot be shared.
        let shared = device.weights != device::Weights::Merged && copies == 1;
        let held = if shared { 1 } else { copies * loaded.max(1) };
        Some(bytes * (held + 1))
    }

    pub fn checks(&self, device: &Device) -> Vec<Check> {
        let mut checks = Vec::new();
        checks.push(match &self.backbone {
            Ok(summary) => Check::ok("backbone", format!("{}, SHA-256 {}", summary.name, summary.sha256)),
            Err(_) if device.follows_repository() && !device.backbone.exists() => {
                let finding = format!("there is none at {}", device.backbone.display());
                if self.fetched.is_empty() {
                    Check::warn(
                        "backbone",
                        finding,
                        "the first plugin brings its own if the repository has it",
                    )
                } else {
                    Check::ok("backbone", format!("{finding}; plugins run on those from the repository"))
                }
            }
            Err(error) => {
                let remedy = format!(
                    "put the backbone that the plugins were fitted on at {}",
                    device.backbone.display()
                );
                Check::fail("backbone", error.to_string(), remedy)
            }
        });
        checks.extend(self.fetched.iter().map(|(path, summary)| judge_fetched(path, summary)));
        if let Err(error) = &self.slots {
            checks.push(Check::fail("plugins", error.to_string(), "run this as the service's user"));
            return checks;
        }
        let backbones: Vec<&str> = self.sound().map(|summary| summary.sha256.as_str()).collect();
        let rules = |task: &Task| device.tasks.iter().find(|rules| rules.name == task.name).map(|t| &t.rules);
        let signed_only = device.updates.root.is_some();
        for task in self.tasks() {
            checks.push(judge(task, &backbones, rules(task)));
            checks.extend(remarks(task, signed_only));
        }
        let runs = |name: &str| self.tasks().iter().any(|task| task.name == name && task.active.is_some());
        if !self.tasks().iter().any(|task| task.active.is_some()) {
            checks.push(Check::warn(
                "plugins",
                "no plugin is active: no series is classified",
                "`scanside plugin install FILE`, then `scanside plugin activate NAME`",
            ));
        }
        for rules in device.tasks.iter().filter(|rules| !runs(&rules.name)) {
            checks.push(Check::warn(
                "plugins",
                format!("device.toml has rules for the task {}, of which no plugin is active", rules.name),
                "activate its plugin, or see whether the name is misspelt",
            ));
        }
        checks
    }
}

fn task(slots: &Slots, Slot { name, state }: Slot) -> Task {
    let (state, error) = match state {
        Ok(state) => (state, None),
        Err(error) => (State::default(), Some(Err(error))),
    };
    let read = |placed: &Placed| slots.read(placed).map(|plugin| plugin.manifest);
    Task {
        name,
        active: error.or_else(|| state.active.as_ref().map(read)),
        waiting: state.candidate.is_some(),
        shadow: state.shadow.is_some(),
        unsigned: state.active.is_some_and(|active| active.target.is_none()),
        down: state.down.filter(|down| down.by_fault),
        failed: state.failed,
    }
}

/// What is to be said of a task besides whether it runs.
fn remarks(task: &Task, signed_only: bool) -> Vec<Check> {
    let name = &task.name;
    let mut checks = Vec::new();
    if let Some(Failed { plugin, reason, at }) = &task.failed {
        checks.push(Check::warn(
            "plugin",
            format!("{name} {} did not go live on {at}: {reason}", plugin.task.version),
            "install one that does; until then this is told",
        ));
    }
    if signed_only && task.unsigned {
        checks.push(Check::warn(
            "plugin",
            format!("{name} is active and unsigned, and updates.root is configured"),
            "install it by its target name once the repository publishes it",
        ));
    }
    checks
}

fn judge_fetched(path: &Path, summary: &Result<Summary, BackboneError>) -> Check {
    let named = path.file_stem().unwrap_or_default();
    let problem = match summary {
        Ok(summary) if named == summary.sha256.as_str() => {
            let finding = format!("from the repository: {}, SHA-256 {}", summary.name, summary.sha256);
            return Check::ok("backbone", finding);
        }
        Ok(summary) => {
            format!("{} has SHA-256 {}, not the one that it is named by", path.display(), summary.sha256)
        }
        Err(error) => error.to_string(),
    };
    let remedy =
        format!("check the disk, remove {} and install its plugin by its name again", path.display());
    Check::fail("backbone", problem, remedy)
}

fn judge(task: &Task, backbones: &[&str], rules: Option<&Rules>) -> Check {
    let name = &task.name;
    let manifest = match &task.active {
        None if task.down.is_some() => {
            let down = task.down.as_ref();
            let (version, at, reason) = down.map_or(("", "", ""), |down| {
                (down.plugin.task.version.as_str(), down.at.as_str(), down.reason.as_str())
            });
            let remedy = format!(
                "mend what the reason says and `scanside plugin activate {name}`, or `scanside plugin rollback {name}`"
            );
            return Check::fail(
                "plugin",
                format!("{name} {version} was taken down on {at}: {reason}"),
                remedy,
            );
        }
        None => {
            let remedy = format!("`scanside plugin activate {name}`");
            return Check::warn("plugin", format!("{name} is installed and not active"), remedy);
        }
        Some(Err(error)) => {
            let remedy = format!("install and activate {name} again");
            return Check::fail("plugin", error.to_string(), remedy);
        }
        Some(Ok(manifest)) => manifest,
    };
    let what = format!("{name} {}", manifest.task.version);
    if !backbones.is_empty() && !backbones.contains(&manifest.backbone.sha256.as_str()) {
        let wanted = &manifest.backbone;
        return Check::fail(
            "plugin",
            format!(
                "{what} was fitted on {} with SHA-256 {}, not on this backbone",
                wanted.name, wanted.sha256
            ),
            "put that backbone in place, or install a plugin for the present one",
        );
    }
    if manifest.accepts.is_none() {
        return Check::fail(
            "plugin",
            format!("{what} does not state what it accepts: the service gives it no series"),
            "export it again with `accepts` in its task file",
        );
    }
    if let Some(reason) = views_that_differ(manifest, rules).first() {
        return Check::fail(
            "plugin",
            format!("{what} gets no series: {}", reason.sentence()),
            "write a table `[task.views.NAME]` for each of its views, and for no other, into device.toml",
        );
    }
    if manifest.golden.is_empty() {
        let remedy = "export it again with golden cases, so that activation can check it on this box";
        return Check::warn("plugin", format!("{what} has no golden cases"), remedy);
    }
    let (cases, candidate) = (manifest.golden.len(), if task.waiting { "; a candidate waits" } else { "" });
    Check::ok(
        "plugin",
        format!("{what} is active, with {cases} golden case{}{candidate}", if cases == 1 { "" } else { "s" }),
    )
}
