use std::path::{Path, PathBuf};

use crate::Error;
use crate::data::Table;
use crate::phantom;
use crate::task::Task;

/// A task of a suite.
#[derive(Debug, Clone)]
pub struct SuiteTask {
    /// The folder's name.
    pub name: String,
    /// What `task.toml` says.
    pub task: Task,
    /// `task.toml`.
    pub task_path: PathBuf,
    /// `data.csv`.
    pub data: PathBuf,
    /// Its SHA-256.
    pub data_sha256: String,
}

impl SuiteTask {
    /// Reads a folder's `task.toml`; its `data.csv` must be there.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (task_path, data) = (folder.join("task.toml"), folder.join("data.csv"));
        let task = Task::read(&task_path)?;
        let data_sha256 = Table::read(&data, &task, false)?.sha256;
        let absolute = std::path::absolute(folder).map_err(Error::io(folder))?;
        let name = absolute.file_name().map_or(task.name.clone(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, task, task_path, data, data_sha256 })
    }
}

/// Tasks that methods are compared on.
#[derive(Debug, Clone)]
pub struct Suite {
    /// In the table's order.
    pub tasks: Vec<SuiteTask>,
}

/// Volumes in train, val and test of the built-in suite `small`.
const SMALL: phantom::Counts = phantom::Counts { train: 30, val: 10, test: 20 };

impl Suite {
    /// A folder with `task.toml` and `data.csv`, or one of such folders, by name.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        if folder.join("task.toml").exists() {
            return Ok(Self { tasks: vec![SuiteTask::open(folder)?] });
        }
        let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
        let mut folders: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        folders.retain(|folder| folder.join("task.toml").exists());
        folders.sort();
        if folders.is_empty() {
            let problem = format!(
                "{} holds no task.toml, nor does a folder in it; expected a folder with task.toml and data.csv, a folder of such \
                 folders, or the word small",
                folder.display()
            );
            return Err(Error::Flag { flag: "--suite", problem });
        }
        Ok(Self { tasks: folders.iter().map(|folder| SuiteTask::open(folder)).collect::<Result<_, _>>()? })
    }

    /// The built-in suite `small`: the demo's task with 60 volumes, made under `out` from the scans in `assets` where they are not
    /// there yet.
    pub fn small(out: &Path, assets: &Path, threads: usize) -> Result<Self, anyhow::Error> {
        let folder = out.join("data/small");
        if !folder.join("data.csv").exists() {
            let mut suite = phantom::Suite::load("demo")?;
            suite.counts = SMALL;
            phantom::generate(&suite, assets, &folder, threads, &|_, _| ())?;
        }
        Ok(Self::open(&folder)?)
    }
}
