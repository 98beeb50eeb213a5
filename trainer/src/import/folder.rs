//! Task folders, and what finding and counting a data set's files need.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use runtime::volume::VolumeError;

use super::wrong;
use crate::Error;
use crate::data::Split;
use crate::task::Task;

/// A row of `data.csv`.
pub(super) struct Row {
    pub(super) id: String,
    pub(super) patient: Option<String>,
    pub(super) split: Split,
    /// Absolute, or from the table's folder.
    pub(super) image: PathBuf,
    pub(super) mask: Option<PathBuf>,
    /// One a label of the task.
    pub(super) targets: Vec<bool>,
    /// One a further column.
    pub(super) extra: Vec<String>,
}

/// A task folder that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The folder.
    pub folder: PathBuf,
    /// Rows of its table.
    pub volumes: usize,
    /// The label columns.
    pub labels: Vec<String>,
    /// Each split with its rows and, label by label, those that are positive.
    pub balance: Vec<(Split, usize, Vec<usize>)>,
}

impl Made {
    /// A sentence where a split has no rows.
    pub(super) fn empty_splits(&self) -> Option<String> {
        let empty: Vec<&str> =
            self.balance.iter().filter(|(_, rows, _)| *rows == 0).map(|(split, ..)| split.name()).collect();
        let folder = self.folder.display();
        (!empty.is_empty())
            .then(|| format!("{folder} has no volumes for {}, so few scans are there", empty.join(" and ")))
    }
}

impl fmt::Display for Made {
    /// A line for the folder, and one a split.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { folder, volumes, labels, balance } = self;
        writeln!(f, "{}: {volumes} volumes; labels {}", folder.display(), labels.join(", "))?;
        for (split, rows, positives) in balance {
            let positives: Vec<String> =
                labels.iter().zip(positives).map(|(label, n)| format!("{label} {n}")).collect();
            writeln!(f, "  {}: {rows} volumes; positive {}", split.name(), positives.join(", "))?;
        }
        Ok(())
    }
}

/// Writes `task.toml` (the text `task`, whose labels name the targets) and `data.csv`, which also gets the columns `extra`. `from` is
/// the data set and `notes` what was left out, for messages.
pub(super) fn write(
    from: &Path,
    folder: &Path,
    task: &str,
    extra: &[&str],
    rows: &[Row],
    notes: &[String],
) -> Result<Made, Error> {
    if rows.is_empty() {
        let why = if notes.is_empty() { "its tables have no rows".to_owned() } else { notes.join("; ") };
        return Err(wrong(from, format!("not one of its scans can be taken ({why}), expected at least one")));
    }
    let labels = checked(from, task)?.labels;
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let table = csv(from, &labels, extra, rows)?;
    put(&folder.join("task.toml"), task.as_bytes())?;
    // Last, so that a folder with a table is whole.
    put(&folder.join("data.csv"), &table)?;
    let of = |split| rows.iter().filter(move |row| row.split == split);
    let positives = |split, label: usize| of(split).filter(|row| row.targets[label]).count();
    let balance = [Split::Train, Split::Val, Split::Test]
        .map(|split| {
            (split, of(split).count(), (0..labels.len()).map(|label| positives(split, label)).collect())
        })
        .to_vec();
    Ok(Made { folder: folder.into(), volumes: rows.len(), labels, balance })
}

/// The task that a task file's text says.
pub(super) fn checked(from: &Path, task: &str) -> Result<Task, Error> {
    let task: Task = toml::from_str(task).map_err(|e| wrong(from, e.message()))?;
    task.validate(1).map_err(|problem| wrong(from, problem))?;
    Ok(task)
}

fn csv(from: &Path, labels: &[String], extra: &[&str], rows: &[Row]) -> Result<Vec<u8>, Error> {
    let failed = |e: csv::Error| Error::io("data.csv")(std::io::Error::other(e));
    let (patients, masks) =
        (rows.iter().any(|row| row.patient.is_some()), rows.iter().any(|row| row.mask.is_some()));
    let mut csv = csv::Writer::from_writer(Vec::new());
    let mut header = vec!["id"];
    header.extend(patients.then_some("patient"));
    header.extend(["split", "image"]);
    header.extend(masks.then_some("mask"));
    header.extend(labels.iter().map(String::as_str));
    header.extend(extra);
    csv.write_record(header).map_err(failed)?;
    for row in rows {
        let mut record = vec![row.id.clone()];
        record.extend(patients.then(|| row.patient.clone().unwrap_or_default()));
        record.extend([row.split.name().to_owned(), cell(from, &row.image)?]);
        if masks {
            record.push(row.mask.as_deref().map_or(Ok(String::new()), |mask| cell(from, mask))?);
        }
        record.extend(row.targets.iter().map(|&flag| u8::from(flag).to_string()));
        record.extend(row.extra.iter().cloned());
        csv.write_record(record).map_err(failed)?;
    }
    csv.into_inner().map_err(|e| Error::io("data.csv")(std::io::Error::other(e.to_string())))
}

fn cell(from: &Path, path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| {
        wrong(from, format!("the name {} is not UTF-8, expected one that a table can hold", path.display()))
    })?;
    Ok(text.to_owned())
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    runtime::files::write_atomically(path, bytes).map_err(Error::io(path))
}

/// The absolute form of `root`, for cells that name scans which stay where they are.
pub(super) fn absolute(root: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(root).map_err(Error::io(root))
}

/// The first of `names` that is in `root`.
pub(super) fn first_of(root: &Path, names: &[&str]) -> Result<PathBuf, Error> {
    names.iter().map(|name| root.join(name)).find(|path| path.exists()).ok_or_else(|| {
        wrong(root, format!("it has no {}, expected the folder of the data set", names.join(" or ")))
    })
}

/// All files under `root`, at most eight folders deep (so that a circle of links ends), by name.
pub(super) fn files_under(root: &Path) -> Result<Vec<PathBuf>, Error> {
    fn walk(folder: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let path = entry.map_err(Error::io(folder))?.path();
            if !path.is_dir() {
                found.push(path);
            } else if depth > 0 {
                walk(&path, depth - 1, found)?;
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(root, 8, &mut found)?;
    found.sort();
    Ok(found)
}

/// The folders in `root`, by name.
pub(super) fn folders_in(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = std::fs::read_dir(root).map_err(Error::io(root))?;
    let paths: BTreeSet<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(Error::io(root)))
        .collect::<Result<_, _>>()?;
    Ok(paths.into_iter().filter(|path| path.is_dir()).collect())
}

/// The text of a file or folder name.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What was left out for one reason: how often, and the first of it.
pub(super) struct LeftOut {
    what: &'static str,
    count: usize,
    first: String,
}

impl LeftOut {
    /// `what` names them with the reason: `series that are not there`.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, count: 0, first: String::new() }
    }

    /// Counts one.
    pub(super) fn add(&mut self, one: impl Into<String>) {
        if self.count == 0 {
            self.first = one.into();
        }
        self.count += 1;
    }

    /// Keeps what can be read of a scan, and counts what cannot; a failing disk or want of memory stays an error.
    pub(super) fn unless_readable<T>(&mut self, read: Result<T, VolumeError>) -> Result<Option<T>, Error> {
        match read {
            Ok(found) => Ok(Some(found)),
            Err(e @ (VolumeError::Io { .. } | VolumeError::Memory { .. } | VolumeError::Write { .. })) => {
                Err(runtime::Error::from(e).into())
            }
            Err(e) => {
                self.add(e.to_string());
                Ok(None)
            }
        }
    }

    /// The first that was counted.
    pub(super) fn first(self) -> String {
        self.first
    }

    /// A sentence, where there was anything.
    pub(super) fn note(self) -> Option<String> {
        (self.count > 0).then(|| format!("{}: {} left out, the first {}", self.what, self.count, self.first))
    }
}
