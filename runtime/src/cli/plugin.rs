//! `scanside plugin`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use firmware_config::device::Device;
use firmware_config::{Label, Manifest, Task};
use runtime::gate::{Gate, GateLimits, GateReport, ThisMachine};
use runtime::infer::Loader;
use runtime::plugin::Plugin;
use runtime::slots::{Down, Failed, Placed, Slot, SlotError, Slots, State};
use serde::Serialize;

use super::{Fault, config, say, target};

#[derive(Subcommand)]
pub enum PluginCommand {
    /// Check a plugin file and tell what it says of itself.
    Show {
        /// The task plugin.
        file: PathBuf,
    },
    /// Check a plugin and make it its task's candidate on this device: a file, or where the configuration has `updates.root` a signed
    /// plugin by its name in the repository, such as north/bowel-injury-1.1.0.plugin.
    Install {
        /// The task plugin.
        plugin: PathBuf,
        /// The repository to take it from instead of `updates.source`: https://HOST/PATH, a folder such as a USB stick's, or mqtt.
        #[arg(long, value_name = "REPOSITORY")]
        source: Option<String>,
        /// Also an unsigned plugin that holds patients' scans among its golden cases.
        #[arg(long)]
        allow_patient_golden: bool,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Run a candidate's golden cases on this machine and, if they are reproduced, make it the task's active plugin. A running
    /// service takes it over by itself.
    Activate {
        /// The task's name.
        task: String,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Bring a task's previous plugin back, at once. A running service takes it over by itself.
    Rollback {
        /// The task's name.
        task: String,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// Check a task's active plugin now: its file, the graph that it merges to, and its golden cases on this machine.
    Verify {
        /// The task's name.
        task: String,
        #[command(flatten)]
        device: DeviceArgs,
    },
    /// List the plugins of this device, those that failed, and why.
    List {
        #[command(flatten)]
        device: DeviceArgs,
        /// JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

/// Which device.
#[derive(Args)]
pub struct DeviceArgs {
    /// The service's configuration.
    #[arg(long, value_name = "device.toml")]
    config: PathBuf,
}

impl PluginCommand {
    pub fn run(self) -> Result<(), Fault> {
        match self {
            Self::Show { file } => {
                let (plugin, sha256) = Plugin::read(&file)?;
                say::table(&describe(&plugin.manifest, sha256))
            }
            Self::Install { plugin, source, allow_patient_golden, device } => {
                let device = config::load(&device.config)?;
                let slots = slots(&device);
                // A name in the repository is no path: a file of that name is looked at first, and where only signed plugins are
                // installed it is refused.
                let installed = if device.updates.root.is_none() || (source.is_none() && plugin.is_file()) {
                    // Where plugins must be signed, whoever signs them decides, and this one is refused in any case.
                    if device.updates.root.is_none() && !allow_patient_golden {
                        check_golden(&plugin)?;
                    }
                    slots.install(&plugin, None)?
                } else {
                    target::install(&device, &slots, &plugin.to_string_lossy(), source.as_deref())?
                };
                let Task { name, version } = &installed.task;
                say::line(&format!(
                    "{name} {version} is the candidate of its task; `scanside plugin activate {name}` makes it run"
                ))
            }
            Self::Activate { task, device } => {
                let device = config::load(&device.config)?;
                let limits = GateLimits::from(&device.gate);
                let (active, report) = slots(&device).activate(&task, &Loader::of(&device), &limits)?;
                let Task { name, version } = &active.task;
                say::line(&format!("{name} {version} is active: {}", passed(&report)))
            }
            Self::Rollback { task, device } => {
                let active = slots(&config::load(&device.config)?).rollback(&task)?;
                let Task { name, version } = &active.task;
                say::line(&format!("{name} {version} is active again"))
            }
            Self::Verify { task, device } => verify(&task, &config::load(&device.config)?),
            Self::List { device, json } => list(&slots(&config::load(&device.config)?), json),
        }
    }
}

/// Where a trusted root is configured, what is installed must come from its repository.
fn slots(device: &Device) -> Slots {
    Slots::new(&device.data_dir).signed_only(device.updates.root.is_some())
}

/// Refuses patients' scans.
fn check_golden(path: &Path) -> Result<(), Fault> {
    match Plugin::read(path)?.0.manifest.patient_golden() {
        None => Ok(()),
        Some(cases) => Err(Fault::Usage(format!(
            "the golden cases {cases} of {} are patients' scans, which would stay on this device with the plugin: say \
             --allow-patient-golden where that is permitted",
            path.display()
        ))),
    }
}

fn passed(report: &GateReport) -> String {
    let GateReport { golden, time, memory } = report;
    let memory = memory.map_or(String::new(), |bytes| format!(", {} MB", bytes.div_ceil(1_000_000)));
    format!(
        "{} golden cases reproduced, a logit is off by {:.1e} at most ({:.2} s{memory})",
        golden.cases,
        golden.logits,
        time.as_secs_f64()
    )
}

fn verify(task: &str, device: &Device) -> Result<(), Fault> {
    let slots = slots(device);
    let active = slots.state(task)?.and_then(|state| state.active);
    let Some(active) = active else {
        let folder = device.data_dir.join("plugins").join(task);
        return Err(runtime::Error::from(SlotError::NoActive { task: task.into(), folder }).into());
    };
    let gate = Gate { limits: (&device.gate).into(), machine: &ThisMachine, go_on: &|| true };
    let (loaded, report) = gate.build(|| slots.load(&active, &Loader::of(device)))?;
    let Task { name, version } = &active.task;
    say::line(&format!(
        "{name} {version} is sound: file and graph are what they were ({}, {}), {}",
        active.sha256,
        loaded.graph_sha256,
        passed(&report)
    ))
}

fn list(slots: &Slots, json: bool) -> Result<(), Fault> {
    for Slot { name, state } in slots.list()? {
        match state {
            Ok(state) => state_lines(slots, &state)
                .into_iter()
                .try_for_each(|line| say::line(&if json { line.json(&name) } else { line.text(&name) }))?,
            Err(error) => {
                let line = Line { slot: "unknown", plugin: None, say: error.to_string() };
                say::line(&if json { line.json(&name) } else { line.text(&name) })?;
            }
        }
    }
    Ok(())
}

/// A line of the list.
struct Line<'a> {
    slot: &'static str,
    plugin: Option<&'a Placed>,
    /// What is the matter with it; empty where nothing is.
    say: String,
}

fn state_lines<'a>(slots: &Slots, state: &'a State) -> Vec<Line<'a>> {
    let problem = |slot, placed| {
        // Of what was taken down, the reason is told instead.
        let read = slots.read(placed);
        read.err().filter(|_| slot != "down").map_or(String::new(), |error| error.to_string())
    };
    let mut lines: Vec<Line> = state
        .placed()
        .map(|(slot, placed)| Line { slot, plugin: Some(placed), say: problem(slot, placed) })
        .collect();
    for line in &mut lines {
        match (line.slot, &state.down, &state.shadow) {
            ("down", Some(Down { reason, at, .. }), _) => line.say = format!("since {at}: {reason}"),
            ("candidate", _, Some(run)) if line.say.is_empty() => {
                let shadow = run.report();
                line.say = format!(
                    "in the shadow: {} of {} series, agreement {:.3}, difference {:.3} on average and {:.3} at most",
                    shadow.results,
                    shadow.of,
                    shadow.agreement,
                    shadow.mean_difference,
                    shadow.max_difference
                );
            }
            _ => {}
        }
    }
    if let Some(Failed { plugin, reason, at }) = &state.failed {
        lines.push(Line { slot: "failed", plugin: Some(plugin), say: format!("{at}: {reason}") });
    }
    lines
}

impl Line<'_> {
    fn text(&self, name: &str) -> String {
        let slot = self.slot;
        let plugin = self.plugin.map_or(String::new(), |Placed { sha256, task, target }| {
            let target = target.as_ref().map_or("unsigned", |target| &target.name);
            format!("  {}  {sha256}  {target}", task.version)
        });
        let gap = if self.say.is_empty() { "" } else { "  " };
        format!("{name}  {slot:<9}{plugin}{gap}{}", self.say)
    }

    fn json(&self, name: &str) -> String {
        serde_json::json!({
            "task": name,
            "slot": self.slot,
            "version": self.plugin.map(|plugin| &plugin.task.version),
            "sha256": self.plugin.map(|plugin| &plugin.sha256),
            "target": self.plugin.and_then(|plugin| plugin.target.as_ref()),
            "problem": (!self.say.is_empty()).then_some(&self.say),
        })
        .to_string()
    }
}

fn describe(manifest: &Manifest, sha256: String) -> Vec<(&'static str, String)> {
    let Manifest { task, backbone, lora, .. } = manifest;
    let blocks = backbone.blocks.map_or(String::new(), |n| format!(", its first {n} blocks"));
    vec![
        ("task", format!("{} {}", task.name, task.version)),
        ("labels", manifest.labels.iter().map(label).collect::<Vec<_>>().join("; ")),
        ("activation", format!("{}, temperature {}", json(&manifest.activation), manifest.temperature)),
        ("backbone", format!("{}{blocks} ({})", backbone.name, backbone.licence)),
        ("LoRA", format!("rank {}, alpha {}, {} attention", lora.rank, lora.alpha, json(&lora.attention))),
        ("parameters", manifest.parameters.to_string()),
        ("recipe", json(&manifest.recipe)),
        ("streamable", manifest.streamable.to_string()),
        ("accepts", manifest.accepts.as_ref().map_or("not stated".into(), json)),
        ("heat map", manifest.heatmap.clone()),
        ("golden cases", golden(manifest)),
        ("written by", manifest.build.clone()),
        ("backbone SHA-256", backbone.sha256.clone()),
        ("content SHA-256", manifest.content_sha256.clone()),
        ("graph SHA-256", manifest.graph_sha256.clone()),
        ("plugin SHA-256", sha256),
    ]
}

fn golden(manifest: &Manifest) -> String {
    let patients = manifest.patient_golden();
    let patients = patients.map_or(String::new(), |cases| format!(", of which patients' scans: {cases}"));
    format!("{}{patients}", manifest.golden.len())
}

fn label(label: &Label) -> String {
    match &label.threshold {
        Some(t) => format!("{} (positive from {}, {})", label.name, t.probability, t.rule),
        None => format!("{} (no threshold)", label.name),
    }
}

/// As in the manifest; a mere name without its quotes.
fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).unwrap_or_default();
    text.trim_matches('"').to_owned()
}
