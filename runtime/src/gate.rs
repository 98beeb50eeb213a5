//! The golden gate: what a plugin must do on this machine before it goes live, and again from time to time.
//!
//! Its golden cases give what they gave where it was exported, within the time and the memory that the device allows. What is
//! read of the machine comes through [`Machine`], so that tests can be slow without waiting.

mod machine;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, SystemTime};

use firmware_config::Utc;
use firmware_config::device::{self, show_duration};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::engine::EngineError;
use crate::infer::{GoldenReport, LoadedTask};
use crate::result::utc;

pub use machine::ThisMachine;

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// For all golden cases together; building the task does not count.
    pub time: Duration,
    /// Bytes for building the task and running its golden cases, beyond what the process had in use before.
    pub memory: u64,
}

impl From<&device::Gate> for GateLimits {
    fn from(gate: &device::Gate) -> Self {
        Self { time: gate.time, memory: gate.memory.0 }
    }
}

/// What the gate reads of the machine.
pub trait Machine: Send + Sync {
    /// The wall clock.
    fn now(&self) -> SystemTime;
    /// A clock that is never set.
    fn monotonic(&self) -> Duration;
    /// Of this process; none where the machine does not tell.
    fn memory(&self) -> Option<Memory>;
    /// Begins to look for the most memory anew; false where that cannot be done.
    fn reset_peak(&self) -> bool;
    /// What a plugin's arithmetic may depend on.
    fn identity(&self) -> Identity;
}

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// In use.
    pub now: u64,
    /// The most that was, since the process began or [`Machine::reset_peak`].
    pub peak: u64,
}

/// What a plugin's arithmetic may depend on besides itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// The program.
    pub build: String,
    /// The kernel's release.
    pub kernel: String,
    /// The processor.
    pub cpu: String,
}

/// A check that was passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checked {
    /// When.
    pub at: Utc,
    /// Where.
    pub on: Identity,
}

/// How a plugin passed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateReport {
    /// How near it came to its golden cases.
    pub golden: GoldenReport,
    /// Time of all golden cases.
    pub time: Duration,
    /// Bytes that it took; none where the machine does not tell.
    pub memory: Option<u64>,
}

/// Why a plugin did not pass, beyond what its golden cases say.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// It is too slow for this machine.
    #[error(
        "the golden cases of task {task} were not done after {:.1} s on this machine, and gate.time allows {}; \
         take a smaller plugin or a faster machine, or allow more", found.as_secs_f64(), show_duration(*allowed)
    )]
    Slow {
        /// The task's name.
        task: String,
        /// When it was stopped.
        found: Duration,
        /// What is allowed.
        allowed: Duration,
    },
    /// It needs too much memory.
    #[error(
        "task {task} takes {} MB of memory with its golden cases, and gate.memory allows {} MB; take a smaller \
         plugin, or allow more", found.div_ceil(1_000_000), allowed / 1_000_000
    )]
    Memory {
        /// The task's name.
        task: String,
        /// Bytes that it took.
        found: u64,
        /// Bytes that are allowed.
        allowed: u64,
    },
    /// The program does not know what it met.
    #[error(
        "the golden cases of task {task} brought the program into a state that it does not know; report it with its log"
    )]
    Panicked {
        /// The task's name.
        task: String,
    },
    /// Something else had to be done.
    #[error("the check of task {task} was stopped because the machine had other work; run it again")]
    Interrupted {
        /// The task's name.
        task: String,
    },
}

impl GateError {
    /// Whether the plugin is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Panicked { .. } | Self::Interrupted { .. })
    }
}

/// The gate of one device.
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    /// What is allowed.
    pub limits: GateLimits,
    /// Where it stands.
    pub machine: &'a dyn Machine,
    /// Asked before each slice, from any thread; the check ends with [`GateError::Interrupted`] where it says no. It may wait, for
    /// what is more urgent; that time is not the plugin's.
    pub go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Gate<'_> {
    /// Builds a task and checks it.
    ///
    /// # Errors
    /// Whatever keeps it from doing here what it did where it was exported, in one sentence.
    pub fn build(
        &self,
        build: impl FnOnce() -> Result<LoadedTask, Error>,
    ) -> Result<(LoadedTask, GateReport), Error> {
        let reset = self.machine.reset_peak();
        let before = self.machine.memory();
        let task = build()?;
        let report = self.run(&task, before, reset)?;
        Ok((task, report))
    }

    /// Checks a task that is loaded.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn check(&self, task: &LoadedTask) -> Result<GateReport, Error> {
        let reset = self.machine.reset_peak();
        self.run(task, self.machine.memory(), reset)
    }

    fn run(&self, task: &LoadedTask, before: Option<Memory>, reset: bool) -> Result<GateReport, Error> {
        let GateLimits { time: allowed, memory: most } = self.limits;
        let name = || task.plugin.manifest.task.name.clone();
        let start = self.machine.monotonic();
        // All threads wait for the same, so the one that waited longest says for how long nothing was done.
        let waited: Mutex<HashMap<ThreadId, Duration>> = Mutex::default();
        let spent = || {
            let waited = waited.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = waited.values().max().copied().unwrap_or_default();
            self.machine.monotonic().saturating_sub(start + waited)
        };
        let interrupted = AtomicBool::new(false);
        let go_on = || {
            let before = self.machine.monotonic();
            let may = (self.go_on)();
            let pause = self.machine.monotonic().saturating_sub(before);
            *waited
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(thread::current().id())
                .or_default() += pause;
            if may {
                return spent() <= allowed;
            }
            interrupted.store(true, Ordering::Relaxed);
            false
        };
        let golden = task.check_golden_while(&go_on);
        let time = spent();
        let golden = match golden {
            Err(Error::Engine(EngineError::Stopped)) if interrupted.into_inner() => {
                return Err(GateError::Interrupted { task: name() }.into());
            }
            // What came out late is no better for being right.
            Err(Error::Engine(EngineError::Stopped)) | Ok(_) if time > allowed => {
                return Err(GateError::Slow { task: name(), found: time, allowed }.into());
            }
            other => other?,
        };
        let memory = before.zip(self.machine.memory()).map(|(before, after)| taken(before, after, reset));
        match memory {
            Some(found) if found > most => {
                Err(GateError::Memory { task: name(), found, allowed: most }.into())
            }
            memory => Ok(GateReport { golden, time, memory }),
        }
    }

    /// What is written down of a check that is passed now.
    pub fn checked(&self) -> Checked {
        Checked { at: utc(self.machine.now()), on: self.machine.identity() }
    }
}

/// Bytes that some work took beyond what was in use before it. Where the peak could not be reset and the work has not raised it,
/// the peak says nothing of the work, and what is in use after it, with its outcome still at hand, is the best that is known.
fn taken(before: Memory, after: Memory, reset: bool) -> u64 {
    let most = if reset || after.peak > before.peak { after.peak.max(after.now) } else { after.now };
    most.saturating_sub(before.now)
}

/// Why a plugin is to be checked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// It never was.
    Never,
    /// Program, kernel or processor are others than when it was.
    OtherMachine,
    /// That was long ago.
    Interval,
}

/// Whether a plugin is to be checked again at `now`.
pub fn due(checked: Option<&Checked>, here: &Identity, now: SystemTime, interval: Duration) -> Option<Due> {
    let Some(Checked { at, on }) = checked else { return Some(Due::Never) };
    if on != here {
        return Some(Due::OtherMachine);
    }
    let since = now.checked_sub(interval).unwrap_or(SystemTime::UNIX_EPOCH);
    // A check in the future is one of a clock that has been set back since, which may have been long ago.
    (*at <= utc(since) || *at > utc(now)).then_some(Due::Interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_due_after_its_time_or_on_another_machine() {
        let here = Identity { build: "scanside 1".into(), kernel: "6.1".into(), cpu: "c".into() };
        let (day, hour) = (Duration::from_hours(24), Duration::from_hours(1));
        let now = SystemTime::UNIX_EPOCH + 100 * day;
        let checked = Checked { at: utc(now), on: here.clone() };
        let due = |checked: &Checked, at| due(Some(checked), &here, at, day);
        assert_eq!(super::due(None, &here, now, day), Some(Due::Never));
        assert_eq!(due(&checked, now), None);
        assert_eq!(due(&checked, now + 23 * hour), None);
        assert_eq!(due(&checked, now + day), Some(Due::Interval));
        assert_eq!(due(&checked, now - hour), Some(Due::Interval), "the clock was set back");
        assert_eq!(due(&checked, SystemTime::UNIX_EPOCH), Some(Due::Interval));
        for other in [
            Identity { build: "scanside 2".into(), ..here.clone() },
            Identity { kernel: "6.2".into(), ..here.clone() },
            Identity { cpu: "d".into(), ..here.clone() },
        ] {
            let checked = Checked { on: other, ..checked.clone() };
            assert_eq!(due(&checked, now), Some(Due::OtherMachine));
        }
    }

    #[test]
    fn memory_is_counted_beyond_what_was_in_use() {
        let memory = |now, peak| Memory { now, peak };
        assert_eq!(taken(memory(100, 100), memory(150, 400), true), 300);
        assert_eq!(taken(memory(100, 300), memory(150, 400), false), 300, "the peak is this work's");
        assert_eq!(taken(memory(100, 500), memory(150, 500), false), 50, "the peak is an older one");
        assert_eq!(taken(memory(100, 100), memory(90, 95), true), 0);
    }
}
