//! What plugins must show while the service runs: active ones their golden cases again from time to time, candidates that did
//! well in the shadow before they are promoted.
//!
//! Both take all cores for a moment, so they are done while nothing is worked on, on its way or waiting, and are given up before
//! the next slice as soon as something comes; then they are tried again. So time and memory are the plugin's own, and a box that
//! is busy takes no plugin down for being slow. Where a box is never idle for a whole interval, golden cases run beside its work,
//! a slice whenever none of a series waits, and only what comes out is judged.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::core::Core;
use crate::Error;
use crate::gate::{
    Checked, Due, Gate, GateError, GateLimits, GateReport, Identity, Machine, ThisMachine, due,
};
use crate::infer::LoadedTask;
use crate::slots::{ShadowRun, Slot, State, Verdict, condemns, verdict};

/// After something else than a plugin failed: a disk, a backbone.
const AFTER_FAULT: Duration = Duration::from_mins(1);

/// See the module's description.
#[derive(Default)]
pub(super) struct Checks {
    /// What the machine is; read once, since nothing of it changes while a process runs.
    here: Option<Identity>,
    /// Since when the check of a plugin is due, by its SHA-256.
    due: BTreeMap<String, Instant>,
    /// When something else than a plugin failed.
    fault: Option<Instant>,
}

impl Checks {
    /// Does one of what is due, if it is the time for it; whether the slots have changed by that.
    pub fn look(&mut self, core: &Core) -> bool {
        if self.fault.is_some_and(|at| at.elapsed() < AFTER_FAULT) {
            return false;
        }
        self.fault = None;
        // An error is told by who loads them.
        let Ok(slots) = core.tasks.slots().list() else { return false };
        let gate = core.gate.read().unwrap_or_else(PoisonError::into_inner).clone();
        let limits = GateLimits::from(&gate);
        for Slot { name, state } in &slots {
            let Ok(state) = state else { continue };
            if let State { candidate: Some(_), shadow: Some(run), .. } = state
                && self.promote(core, name, run, &limits)
            {
                return true;
            }
        }
        let current = core.tasks.current();
        self.due.retain(|plugin, _| current.iter().any(|task| task.plugin_sha256 == *plugin));
        for task in current {
            let name = &task.plugin.manifest.task.name;
            let state =
                slots.iter().find(|slot| slot.name == *name).and_then(|slot| slot.state.as_ref().ok());
            let active = state.and_then(|state| state.active.as_ref());
            if active.is_some_and(|active| active.sha256 == task.plugin_sha256) {
                let checked = state.and_then(|state| state.checked.as_ref());
                if self.check(core, &task, checked, limits, gate.interval) {
                    return true;
                }
            }
        }
        false
    }

    /// Whether the slots have changed.
    fn check(
        &mut self,
        core: &Core,
        task: &Arc<LoadedTask>,
        checked: Option<&Checked>,
        limits: GateLimits,
        interval: Duration,
    ) -> bool {
        let here = self.here.get_or_insert_with(|| ThisMachine.identity());
        let Some(cause) = due(checked, here, ThisMachine.now(), interval) else { return false };
        let (name, plugin) = (&task.plugin.manifest.task.name, &task.plugin_sha256);
        let overdue = self.due.entry(plugin.clone()).or_insert_with(Instant::now).elapsed() >= interval;
        let idle = core.is_idle();
        if !idle && !overdue {
            return false;
        }
        let alone = || core.is_quiet() && !core.queue.is_stopping();
        let beside = || core.stand_back();
        let gate = Gate {
            limits: if idle { limits } else { GateLimits { time: Duration::MAX, memory: u64::MAX } },
            machine: &ThisMachine,
            go_on: if idle { &alone } else { &beside },
        };
        let cause = match cause {
            Due::Never => "it was not checked yet",
            Due::OtherMachine => "program, kernel or processor have changed",
            Due::Interval => "it is time",
        };
        tracing::debug!(task = name, cause, idle, "golden cases run again");
        let slots = core.tasks.slots();
        let written = match run(&gate, task) {
            Ok(report) => {
                self.due.remove(plugin);
                let (ms, logits) = (report.time.as_millis() as u64, report.golden.logits);
                tracing::info!(task = name, cause, ms, logits, "golden cases are reproduced");
                slots.set_checked(name, plugin, gate.checked()).map(|()| false)
            }
            Err(Error::Gate(GateError::Interrupted { .. })) => Ok(false),
            Err(error) if condemns(&error) => {
                tracing::error!(task = name, %error, "a plugin is taken down");
                slots.take_down_if(name, plugin, &error.to_string()).map(|()| true)
            }
            Err(error) => Err(error),
        };
        written.unwrap_or_else(|error| {
            tracing::error!(task = name, %error, "a check of a plugin came to nothing");
            self.fault = Some(Instant::now());
            false
        })
    }

    /// Whether the slots have changed.
    fn promote(&mut self, core: &Core, task: &str, run: &ShadowRun, limits: &GateLimits) -> bool {
        if verdict(&run.rule, &run.statistics) != Verdict::Promote || !core.is_idle() {
            return false;
        }
        let promoted = core.tasks.promote(task, limits, &|| core.is_quiet() && !core.queue.is_stopping());
        match promoted {
            Ok(_) => {
                tracing::info!(task, "a candidate is promoted after its time in the shadow");
                true
            }
            Err(Error::Gate(GateError::Interrupted { .. })) => false,
            Err(error) => {
                tracing::error!(task, %error, "a candidate is not promoted");
                let failed = condemns(&error);
                self.fault = (!failed).then(Instant::now);
                failed
            }
        }
    }
}

fn run(gate: &Gate<'_>, task: &LoadedTask) -> Result<GateReport, Error> {
    catch_unwind(AssertUnwindSafe(|| gate.check(task))).unwrap_or_else(|_| {
        let task = task.plugin.manifest.task.name.clone();
        Err(GateError::Panicked { task }.into())
    })
}
