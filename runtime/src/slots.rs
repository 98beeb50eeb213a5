//! The task plugins of a device: a folder a task, in which plugin files lie under their SHA-256 and one file says which of them
//! is what.
//!
//! ```text
//! plugins/lock                    held while a program changes something below
//! plugins/TASK/slots.json         candidate, active, previous; what failed, what was taken down and why
//! plugins/TASK/SHA256.plugin      the files that slots.json names, and for a moment others
//! backbones/SHA256.safetensors    backbones that came from the repository; `.part` while they are fetched
//! ```
//!
//! A plugin is installed as its task's candidate and goes live by activation, which builds the task graph on this machine,
//! compares its digest and runs the golden cases; what was active is kept for [`Slots::rollback`]. Plugins are kept as they
//! came, and merged when they are loaded: merged graphs would fill a small disk.
//!
//! Every transition is the renaming of one new `slots.json` into its place, after all that it names is durable and before
//! anything is removed. A power cut at any instant leaves the old state or the new one, with the files of either. What is
//! loaded has the bytes that it was installed with: a file's SHA-256 is compared each time that it is read.

mod backbones;
mod error;
mod shadow;
mod state;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::{Shadow, TargetRef, Task, Utc};

use self::state::Unchanged;
use crate::Error;
use crate::disk::{Disk, RealDisk};
use crate::engine::EngineError;
use crate::files::{create_folders_on, write_atomically_on};
use crate::gate::{Checked, Gate, GateError, GateLimits, GateReport, Machine, ThisMachine};
use crate::infer::{LoadedTask, Loader};
use crate::plugin::{MOST_BYTES, Plugin, PluginError};
use crate::result::utc;
use crate::tensor::sha256;

pub use self::error::SlotError;
pub use self::shadow::{Comparison, Statistics, Verdict, verdict};
pub use self::state::{Down, Failed, Placed, SCHEMA, ShadowRun, State};

const STATE: &str = "slots.json";
/// A slots.json has some kilobytes.
const MOST_STATE_BYTES: u64 = 1 << 20;

/// Where a device keeps its plugins; clones are of the same place.
#[derive(Clone)]
pub struct Slots {
    data_dir: PathBuf,
    folder: PathBuf,
    disk: Arc<dyn Disk>,
    machine: Arc<dyn Machine>,
    signed_only: bool,
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// A plugin in a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The file.
    pub path: PathBuf,
    /// Name and version of its task.
    pub task: Task,
    /// SHA-256 of the file.
    pub sha256: String,
    /// The signed target that it came from; none where it is unsigned.
    pub target: Option<TargetRef>,
}

/// The plugins of one task.
#[derive(Debug)]
pub struct Slot {
    /// The task's name.
    pub name: String,
    /// What is where; what cannot be read any more is an error of its own.
    pub state: Result<State, Error>,
}

impl Slots {
    /// The slots in a device's data folder; nothing need be there yet.
    pub fn new(data_dir: &Path) -> Self {
        Self::on(Arc::new(RealDisk::Shared), Arc::new(ThisMachine), data_dir)
    }

    /// As [`Self::new`], on any disk and machine.
    pub fn on(disk: Arc<dyn Disk>, machine: Arc<dyn Machine>, data_dir: &Path) -> Self {
        let (data_dir, folder) = (data_dir.to_owned(), data_dir.join("plugins"));
        Self { data_dir, folder, disk, machine, signed_only: false }
    }

    /// Whether nothing unsigned may be installed, activated or brought back, as where a trusted root is configured.
    #[must_use]
    pub fn signed_only(self, signed_only: bool) -> Self {
        Self { signed_only, ..self }
    }

    /// Checks a plugin file and puts it into its task's candidate slot, over what stands there. `target` is the signed target
    /// that the file is; none for a file that came by hand.
    ///
    /// # Errors
    /// Where it is no sound plugin, not the target, or unsigned and must not be.
    pub fn install(&self, file: &Path, target: Option<TargetRef>) -> Result<Installed, Error> {
        if self.signed_only && target.is_none() {
            return Err(SlotError::NotSigned { what: file.display().to_string() }.into());
        }
        let bytes = Plugin::read_bytes(file)?;
        self.install_bytes(&bytes, file, target)
    }

    pub(crate) fn install_bytes(
        &self,
        bytes: &[u8],
        file: &Path,
        target: Option<TargetRef>,
    ) -> Result<Installed, Error> {
        let found = sha256(bytes);
        if let Some(target) = &target {
            let differs = |found: String, expected: String| SlotError::NotTheTarget {
                file: file.to_owned(),
                target: target.name.clone(),
                found,
                expected,
            };
            if target.length != bytes.len() as u64 {
                let expected = format!("{}", target.length);
                return Err(differs(format!("{} bytes", bytes.len()), expected).into());
            }
            if target.sha256 != found {
                return Err(differs(format!("SHA-256 {found}"), target.sha256.clone()).into());
            }
        }
        let task = Plugin::parse(bytes, file)?.manifest.task;
        let placed = Placed { sha256: found, task, target };
        let name = placed.task.name.clone();
        let folder = self.folder.join(&name);
        create_folders_on(&*self.disk, &folder, &self.data_dir).map_err(io(&folder))?;
        self.transition(&name, |state| {
            let path = self.path(&name, &placed.sha256);
            // What is named is durable, and an active plugin's file is better left alone.
            let is_there = state.placed().any(|(_, other)| other.sha256 == placed.sha256)
                && self.bytes(&name, &placed).is_ok();
            if !is_there {
                write_atomically_on(&*self.disk, &path, bytes).map_err(io(&path))?;
            }
            state.install(placed.clone());
            Ok(())
        })?;
        Ok(self.installed(placed))
    }

    /// Builds the candidate's task graph from the device's backbone, runs the golden cases within `limits`, and makes it the
    /// active one; where no candidate waits, what was taken down.
    ///
    /// # Errors
    /// Whatever keeps it from doing here what it did where it was exported; the active plugin stays. A candidate that is at fault
    /// itself is [`State::failed`] from then on.
    pub fn activate(
        &self,
        task: &str,
        loader: &Loader,
        limits: &GateLimits,
    ) -> Result<(Installed, GateReport), Error> {
        self.activate_while(task, loader, limits, &|| true)
    }

    /// As [`Self::activate`]; `go_on` is asked before each slice of a golden case. Where it says no nothing has changed, and the
    /// error is [`GateError::Interrupted`].
    pub fn activate_while(
        &self,
        task: &str,
        loader: &Loader,
        limits: &GateLimits,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<(Installed, GateReport), Error> {
        let gate = Gate { limits: *limits, machine: &*self.machine, go_on };
        self.activate_by(task, |placed| {
            let (_, report) = gate.build(|| self.load(placed, loader))?;
            Ok((report, gate.checked()))
        })
    }

    fn activate_by<T>(
        &self,
        task: &str,
        gate: impl FnOnce(&Placed) -> Result<(T, Checked), Error>,
    ) -> Result<(Installed, T), Error> {
        let next = self.state(task)?.and_then(|state| state.next().cloned());
        let Some(placed) = next else {
            return Err(SlotError::NoCandidate { task: task.into(), folder: self.folder.join(task) }.into());
        };
        self.check_signed(&placed)?;
        match gate(&placed) {
            Ok((report, checked)) => {
                self.transition(task, |state| Ok(state.activate(&placed, checked)?))?;
                Ok((self.installed(placed), report))
            }
            Err(error) => {
                if condemns(&error) {
                    let (reason, at) = (error.to_string(), self.now());
                    // It is not active in any case.
                    if let Err(error) = self.transition(task, |state| Ok(state.fail(&placed, &reason, at)?)) {
                        tracing::warn!(task, %error, "that a plugin has failed could not be written down");
                    }
                }
                Err(error)
            }
        }
    }

    /// Makes the previous plugin the active one at once, and the active one the previous. A running service loads it beside the
    /// one that it has.
    ///
    /// # Errors
    /// Where there is none, or its file is not what it was.
    pub fn rollback(&self, task: &str) -> Result<Installed, Error> {
        let active = self.change(task, |state| {
            if let Some(previous) = &state.previous {
                self.check_signed(previous)?;
                self.bytes(task, previous)?;
            }
            state.rollback()?;
            Ok(state.active.clone())
        });
        match active {
            Err(Stop::Unchanged(Unchanged::Empty)) | Ok(None) => {
                Err(SlotError::NoPrevious { task: task.into(), folder: self.folder.join(task) }.into())
            }
            Ok(Some(active)) => Ok(self.installed(active)),
            Err(stop) => Err(stop.told(task)),
        }
    }

    /// Stops the active plugin because it is at fault; it can be activated again, and what was active before be brought back.
    ///
    /// # Errors
    /// Where nothing is active.
    pub fn take_down(&self, task: &str, reason: &str) -> Result<(), Error> {
        self.stop(task, None, reason, true)
    }

    /// As [`Self::take_down`], if the active plugin is still the one with this SHA-256.
    pub fn take_down_if(&self, task: &str, sha256: &str, reason: &str) -> Result<(), Error> {
        self.stop(task, Some(sha256), reason, true)
    }

    /// Stops the active plugin because nobody wants it any more. Nothing is wrong then.
    ///
    /// # Errors
    /// Where nothing is active.
    pub fn retire(&self, task: &str, reason: &str) -> Result<(), Error> {
        self.stop(task, None, reason, false)
    }

    fn stop(&self, task: &str, sha256: Option<&str>, reason: &str, by_fault: bool) -> Result<(), Error> {
        let at = self.now();
        let changed = self.change(task, |state| {
            let found = state.active.as_ref().map(|active| active.sha256.as_str());
            if sha256.is_some() && found != sha256 {
                return Err(Unchanged::Replaced.into());
            }
            Ok(state.take_down(reason, at, by_fault)?)
        });
        match changed {
            Err(Stop::Unchanged(Unchanged::Empty)) => {
                Err(SlotError::NoActive { task: task.into(), folder: self.folder.join(task) }.into())
            }
            other => other.map_err(|stop| stop.told(task)),
        }
    }

    /// Gives the candidate up.
    ///
    /// # Errors
    /// Where there is none.
    pub fn fail_candidate(&self, task: &str, reason: &str) -> Result<(), Error> {
        let at = self.now();
        self.of_candidate(task, |state| {
            let candidate = state.candidate.clone().ok_or(Unchanged::Empty)?;
            state.fail(&candidate, reason, at)
        })
    }

    /// As [`Self::fail_candidate`], if the candidate is still the one with this SHA-256.
    pub fn fail_candidate_if(&self, task: &str, sha256: &str, reason: &str) -> Result<(), Error> {
        let at = self.now();
        self.of_candidate(task, |state| {
            let candidate = state.candidate.clone().filter(|candidate| candidate.sha256 == sha256);
            state.fail(&candidate.ok_or(Unchanged::Replaced)?, reason, at)
        })
    }

    /// Runs the candidate beside the active plugin from now on. By the same rule as before it goes on, and nothing changes.
    ///
    /// # Errors
    /// Where there is no candidate, or nothing to compare it with.
    pub fn shadow(&self, task: &str, rule: Shadow) -> Result<(), Error> {
        self.of_candidate(task, |state| state.begin_shadow(rule))
    }

    /// Counts a series that candidate and active plugin, named by their SHA-256, have classified; what follows from it.
    ///
    /// # Errors
    /// [`SlotError::Replaced`] where they are others by now, which is no harm: the series does not count.
    pub fn count_shadow(
        &self,
        task: &str,
        candidate: &str,
        active: &str,
        comparison: &Comparison,
    ) -> Result<Verdict, Error> {
        let at = self.now();
        self.transition(task, |state| {
            let run = state.count(candidate, active, comparison)?;
            let verdict = verdict(&run.rule, &run.statistics);
            if let Verdict::GiveUp(reason) = &verdict
                && let Some(candidate) = state.candidate.clone()
            {
                state.fail(&candidate, reason, at)?;
            }
            Ok(verdict)
        })
    }

    /// Writes down that the active plugin, if it is still the one with this SHA-256, has passed its golden cases.
    pub fn set_checked(&self, task: &str, sha256: &str, checked: Checked) -> Result<(), Error> {
        self.transition(task, |state| {
            if state.active.as_ref().is_none_or(|active| active.sha256 != sha256) {
                return Err(Unchanged::Replaced.into());
            }
            state.checked = Some(checked);
            Ok(())
        })
    }

    /// What is said of a task's plugins; none where none was ever installed.
    ///
    /// # Errors
    /// Where `slots.json` cannot be read or does not hold what it should.
    pub fn state(&self, task: &str) -> Result<Option<State>, Error> {
        // It becomes a folder's name.
        if !is_name(task) {
            return Ok(None);
        }
        let path = self.folder.join(task).join(STATE);
        let bytes = match self.disk.read(&path, MOST_STATE_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io(&path))?,
        };
        let state: Result<State, String> = serde_json::from_slice(&bytes).map_err(|e| e.to_string());
        let sound = state.and_then(|state| state.validate(task).map(|()| state));
        sound.map(Some).map_err(|detail| SlotError::State { path, detail }.into())
    }

    /// Every task with a plugin, by name.
    pub fn list(&self) -> Result<Vec<Slot>, Error> {
        let entries = match self.disk.list(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(io(&self.folder))?,
        };
        let mut slots = Vec::new();
        for name in entries.into_iter().filter(|entry| entry.is_folder).map(|entry| entry.name) {
            if let Some(state) = self.state(&name).transpose() {
                slots.push(Slot { name, state });
            }
        }
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(slots)
    }

    /// The active plugins, by the names of their tasks; their files are not looked into.
    pub fn active(&self) -> Result<Vec<(String, Installed)>, Error> {
        let mut active = Vec::new();
        for Slot { name, state } in self.list()? {
            active.extend(state?.active.map(|placed| (name, self.installed(placed))));
        }
        Ok(active)
    }

    /// A plugin that is in a slot, if its file has the bytes that it was installed with.
    ///
    /// # Errors
    /// [`SlotError::Gone`], [`SlotError::Altered`], or what is wrong with a plugin that an older build had taken.
    pub fn read(&self, placed: &Placed) -> Result<Plugin, Error> {
        let path = self.path(&placed.task.name, &placed.sha256);
        let plugin = Plugin::parse(&self.bytes(&placed.task.name, placed)?, &path)?;
        let (found, named) = (&plugin.manifest.task, &placed.task);
        if found == named {
            return Ok(plugin);
        }
        let detail =
            format!("{} {} stands where {} {} is", named.name, named.version, found.name, found.version);
        Err(SlotError::State { path: self.folder.join(&named.name).join(STATE), detail }.into())
    }

    /// Reads a plugin that is in a slot and loads it on its backbone: one that was fetched for it, or the loader's. Its task graph is
    /// built and compared.
    pub fn load(&self, placed: &Placed, loader: &Loader) -> Result<LoadedTask, Error> {
        self.load_by(placed, loader, false)
    }

    /// As [`Self::load`], of an active plugin, whose task graph was compared when it went live.
    pub fn load_active(&self, placed: &Placed, loader: &Loader) -> Result<LoadedTask, Error> {
        self.load_by(placed, loader, true)
    }

    fn load_by(&self, placed: &Placed, loader: &Loader, known: bool) -> Result<LoadedTask, Error> {
        let path = self.path(&placed.task.name, &placed.sha256);
        let plugin = self.read(placed)?;
        let fetched = self.fetched_backbone(&plugin.manifest.backbone.sha256);
        let backbone = fetched.as_deref().unwrap_or(loader.backbone());
        let mut task = loader.load(plugin, placed.sha256.clone(), &path, backbone, known)?;
        task.target.clone_from(&placed.target);
        Ok(task)
    }

    /// Where a plugin that is in a slot lies.
    pub fn installed(&self, placed: Placed) -> Installed {
        let Placed { sha256, task, target } = placed;
        Installed { path: self.path(&task.name, &sha256), task, sha256, target }
    }

    fn path(&self, task: &str, sha256: &str) -> PathBuf {
        self.folder.join(task).join(format!("{sha256}.plugin"))
    }

    /// The bytes of a plugin's file, if they are those that it was installed with.
    fn bytes(&self, task: &str, placed: &Placed) -> Result<Vec<u8>, Error> {
        let path = self.path(task, &placed.sha256);
        let bytes = match self.disk.read(&path, MOST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(SlotError::Gone { path }.into());
            }
            other => other.map_err(io(&path))?,
        };
        let found = sha256(&bytes);
        if found == placed.sha256 { Ok(bytes) } else { Err(SlotError::Altered { path, found }.into()) }
    }

    fn check_signed(&self, placed: &Placed) -> Result<(), Error> {
        if self.signed_only && placed.target.is_none() {
            let Task { name, version } = &placed.task;
            return Err(SlotError::NotSigned { what: format!("plugin {name} {version}") }.into());
        }
        Ok(())
    }

    fn now(&self) -> Utc {
        utc(self.machine.now())
    }

    fn of_candidate(
        &self,
        task: &str,
        change: impl FnOnce(&mut State) -> Result<(), Unchanged>,
    ) -> Result<(), Error> {
        match self.change(task, |state| Ok(change(state)?)) {
            Err(Stop::Unchanged(Unchanged::Empty)) => {
                Err(SlotError::NoCandidate { task: task.into(), folder: self.folder.join(task) }.into())
            }
            Err(Stop::Unchanged(Unchanged::NoActive)) => {
                Err(SlotError::NoActive { task: task.into(), folder: self.folder.join(task) }.into())
            }
            other => other.map_err(|stop| stop.told(task)),
        }
    }

    fn transition<T>(
        &self,
        task: &str,
        change: impl FnOnce(&mut State) -> Result<T, Stop>,
    ) -> Result<T, Error> {
        self.change(task, change).map_err(|stop| stop.told(task))
    }

    /// One transition: nobody else changes anything meanwhile, and what `change` leaves is durable before files that no slot
    /// names any more are removed.
    fn change<T>(&self, task: &str, change: impl FnOnce(&mut State) -> Result<T, Stop>) -> Result<T, Stop> {
        let folder = self.folder.join(task);
        let is_there = is_name(task)
            && match self.disk.list(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                other => other.map(|_| true).map_err(io(&folder))?,
            };
        if !is_there {
            // Nothing was ever installed, and there is no place for a lock.
            return change(&mut State::default());
        }
        let lock = self.folder.join("lock");
        let _lock = self.disk.wait_lock(&lock).map_err(io(&lock))?;
        let before = self.state(task)?;
        let mut after = before.clone().unwrap_or_default();
        let outcome = change(&mut after)?;
        if before.as_ref() != Some(&after) {
            let path = folder.join(STATE);
            let mut json = serde_json::to_vec_pretty(&after).expect("plain data serialises");
            json.push(b'\n');
            write_atomically_on(&*self.disk, &path, &json).map_err(io(&path))?;
        }
        self.remove_unnamed(&folder, &after);
        Ok(outcome)
    }

    /// Removes files that no slot names. What stays, and what a power cut brings back, is removed by the next transition.
    fn remove_unnamed(&self, folder: &Path, state: &State) {
        let named: Vec<String> = state.placed().map(|(_, p)| format!("{}.plugin", p.sha256)).collect();
        let removed = self.disk.list(folder).and_then(|entries| {
            let ours = |name: &str| [".plugin", ".new"].iter().any(|end| name.ends_with(end));
            let mut names = entries.into_iter().map(|entry| entry.name);
            names
                .by_ref()
                .filter(|name| ours(name) && !named.contains(name))
                .try_for_each(|name| self.disk.remove(&folder.join(name)))
        });
        if let Err(error) = removed {
            tracing::warn!(folder = %folder.display(), %error, "a plugin that is not used any more stays on the disk");
        }
    }
}

/// Why there is no transition.
enum Stop {
    Unchanged(Unchanged),
    Error(Error),
}

impl Stop {
    fn told(self, task: &str) -> Error {
        match self {
            Self::Unchanged(_) => SlotError::Replaced { task: task.into() }.into(),
            Self::Error(error) => error,
        }
    }
}

impl From<Unchanged> for Stop {
    fn from(unchanged: Unchanged) -> Self {
        Self::Unchanged(unchanged)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<SlotError> for Stop {
    fn from(error: SlotError) -> Self {
        Self::Error(error.into())
    }
}

fn is_name(task: &str) -> bool {
    Task { name: task.into(), version: "0.0.0".into() }.validate().is_ok()
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> SlotError {
    let path = path.to_owned();
    |source| SlotError::Io { path, source }
}

/// Whether a plugin that met this error is at fault itself, and not the disk, the backbone at hand or the moment.
pub fn condemns(error: &Error) -> bool {
    match error {
        Error::Plugin(error) => !matches!(error, PluginError::Io { .. }),
        Error::Engine(error) => !matches!(error, EngineError::Io { .. } | EngineError::Stopped),
        Error::Gate(error) => !matches!(error, GateError::Interrupted { .. }),
        Error::Infer(_) | Error::Graph(_) | Error::Recipe(_) | Error::Tensor(_) => true,
        _ => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
