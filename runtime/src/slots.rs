//! The task plugins of a device: a folder a task, with a candidate and an active plugin in it.
//!
//! A plugin is installed as its task's candidate and goes live by activation, which builds the task graph on this
//! machine, compares its digest and runs the golden cases. Each step ends in one rename, so that a power cut leaves
//! the old state or the new one.

use std::io;
use std::path::{Path, PathBuf};

use firmware_config::Task;

use crate::Error;
use crate::infer::{GoldenReport, LoadedTask};
use crate::plugin::Plugin;

const CANDIDATE: &str = "candidate.plugin";
const ACTIVE: &str = "active.plugin";

/// Where a device keeps its plugins.
#[derive(Debug, Clone)]
pub struct Slots {
    folder: PathBuf,
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
}

/// The plugins of one task.
#[derive(Debug)]
pub struct Slot {
    /// The task's name.
    pub name: String,
    /// What runs; a file that cannot be read any more is an error of its own.
    pub active: Option<Result<Installed, Error>>,
    /// What waits for activation.
    pub candidate: Option<Result<Installed, Error>>,
}

/// Why a slot could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The task's folder or a file in it could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is nothing to activate.
    #[error("task {task} has no candidate plugin in {}; install one with `scanside plugin install FILE`", folder.display())]
    NoCandidate {
        /// The task's name, as given.
        task: String,
        /// The folder that was looked into.
        folder: PathBuf,
    },
}

impl SlotError {
    /// Whether the user's word is at fault, not the machine.
    pub fn is_bad_input(&self) -> bool {
        matches!(self, Self::NoCandidate { .. })
    }
}

impl Slots {
    /// The slots in a device's data folder; nothing need be there yet.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("plugins") }
    }

    /// Checks a plugin file and puts it into its task's candidate slot, over what stands there.
    pub fn install(&self, file: &Path) -> Result<Installed, Error> {
        let (plugin, _) = Plugin::read(file)?;
        let folder = self.folder.join(&plugin.manifest.task.name);
        let io = |path: &Path| {
            let path = path.to_owned();
            |source| SlotError::Io { path, source }
        };
        std::fs::create_dir_all(&folder).map_err(io(&folder))?;
        let path = folder.join(CANDIDATE);
        let sha256 = plugin.write(&path)?;
        Ok(Installed { path, task: plugin.manifest.task, sha256 })
    }

    /// Builds the candidate's task graph from the device's backbone, runs the golden cases, and makes it the active one.
    ///
    /// # Errors
    /// Whatever keeps the candidate from doing here what it did where it was exported; the active plugin stays.
    pub fn activate(
        &self,
        task: &str,
        backbone: &Path,
        threads: usize,
    ) -> Result<(Installed, GoldenReport), Error> {
        let folder = self.folder.join(task);
        let candidate = folder.join(CANDIDATE);
        let named = Task { name: task.into(), version: "0.0.0".into() }.validate().is_ok();
        if !named || !candidate.is_file() {
            return Err(SlotError::NoCandidate { task: task.into(), folder }.into());
        }
        let loaded = LoadedTask::merge(backbone, &candidate, threads)?;
        let report = loaded.check_golden()?;
        let path = folder.join(ACTIVE);
        // What was checked, not what may stand under the name by now.
        let sha256 = loaded.plugin.write(&path)?;
        std::fs::remove_file(&candidate).map_err(|source| SlotError::Io { path: candidate, source })?;
        Ok((Installed { path, task: loaded.plugin.manifest.task, sha256 }, report))
    }

    /// The task names and files of the active plugins, by name; the files are not looked into.
    pub fn active(&self) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut active = Vec::new();
        for entry in self.folders()? {
            let path = entry.path().join(ACTIVE);
            if path.is_file() {
                active.push((entry.file_name().to_string_lossy().into_owned(), path));
            }
        }
        active.sort();
        Ok(active)
    }

    /// A folder a task; none where nothing was ever installed.
    fn folders(&self) -> Result<Vec<std::fs::DirEntry>, Error> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.and_then(Iterator::collect),
        };
        entries.map_err(|source| SlotError::Io { path: self.folder.clone(), source }.into())
    }

    /// Every task with a plugin, by name.
    pub fn list(&self) -> Result<Vec<Slot>, Error> {
        let mut slots = Vec::new();
        for entry in self.folders()? {
            let read = |name: &str| {
                let path = entry.path().join(name);
                path.is_file().then(|| installed(path))
            };
            let (active, candidate) = (read(ACTIVE), read(CANDIDATE));
            if active.is_some() || candidate.is_some() {
                slots.push(Slot {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    active,
                    candidate,
                });
            }
        }
        slots.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(slots)
    }
}

fn installed(path: PathBuf) -> Result<Installed, Error> {
    let (plugin, sha256) = Plugin::read(&path)?;
    Ok(Installed { path, task: plugin.manifest.task, sha256 })
}
