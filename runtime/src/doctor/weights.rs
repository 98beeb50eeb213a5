//! The backbone, and the plugins that are to run on it.

use std::path::Path;

use firmware_config::device::Device;
use firmware_config::{Manifest, Rules};

use super::Check;
use crate::Error;
use crate::backbone::{Backbone, BackboneError};
use crate::ingest::rules::views_that_differ;
use crate::plugin::Plugin;
use crate::slots::{Slot, Slots};

/// What lies on the box, or why it cannot be used.
pub(super) struct Weights {
    backbone: Result<Summary, BackboneError>,
    slots: Result<Vec<Task>, Error>,
}

/// Of a backbone, without its tensors: these take as much memory as the service's own.
struct Summary {
    name: String,
    sha256: String,
    /// Of its weights as f32.
    bytes: u64,
}

struct Task {
    name: String,
    active: Option<Result<Manifest, Error>>,
    waiting: bool,
}

impl Weights {
    pub fn read(device: &Device) -> Self {
        let backbone = Backbone::open(&device.backbone).map(|backbone| Summary {
            name: backbone.name(),
            bytes: backbone.tensors.values().map(|t| 4 * t.data.len() as u64).sum(),
            sha256: backbone.sha256,
        });
        let slots = Slots::new(&device.data_dir).list();
        Self { backbone, slots: slots.map(|slots| slots.into_iter().map(task).collect()) }
    }

    fn tasks(&self) -> &[Task] {
        self.slots.as_deref().unwrap_or_default()
    }

    /// Bytes that the service needs: each task holds its merged weights as read and as packed for the kernels, and the one that is
    /// being loaded holds the graph besides (`tests/tests/memory.rs` holds `infer` to that).
    pub fn memory(&self) -> Option<u64> {
        let one = self.backbone.as_ref().ok()?.bytes;
        let active = self.tasks().iter().filter(|task| task.active.is_some()).count() as u64;
        Some(one * (2 * active.max(1) + 1))
    }

    pub fn checks(&self, device: &Device) -> Vec<Check> {
        let mut checks = Vec::new();
        checks.push(match &self.backbone {
            Ok(summary) => Check::ok("backbone", format!("{}, SHA-256 {}", summary.name, summary.sha256)),
            Err(error) => {
                let remedy = format!(
                    "put the backbone that the plugins were fitted on at {}",
                    device.backbone.display()
                );
                Check::fail("backbone", error.to_string(), remedy)
            }
        });
        if let Err(error) = &self.slots {
            checks.push(Check::fail("plugins", error.to_string(), "run this as the service's user"));
            return checks;
        }
        let sha256 = self.backbone.as_ref().ok().map(|summary| summary.sha256.as_str());
        let rules = |task: &Task| device.tasks.iter().find(|rules| rules.name == task.name).map(|t| &t.rules);
        checks.extend(self.tasks().iter().map(|task| judge(task, sha256, rules(task))));
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

fn task(slot: Slot) -> Task {
    let manifest = |path: &Path| Plugin::read(path).map(|(plugin, _)| plugin.manifest).map_err(Error::from);
    let active = slot.active.map(|installed| installed.and_then(|installed| manifest(&installed.path)));
    Task { name: slot.name, active, waiting: slot.candidate.is_some() }
}

fn judge(task: &Task, backbone: Option<&str>, rules: Option<&Rules>) -> Check {
    let name = &task.name;
    let manifest = match &task.active {
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
    if backbone.is_some_and(|sha256| sha256 != manifest.backbone.sha256) {
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
