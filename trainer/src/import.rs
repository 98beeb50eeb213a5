//! Public data sets as tasks: `task.toml` and `data.csv` in a folder, or a suite of such folders.
//!
//! Each data set is taken in the layout in which its makers give it. Scans stay where they are unless the trainer cannot read them as they
//! are (arrays, MetaImage, crops). What the sets leave open (recipe, split, which series) stands in `docs/datasets.md` and in the task
//! files of `trainer/tasks`, which go out with their comments.

mod cq500;
mod crop;
mod ct_rate;
mod folder;
mod lidc;
mod luna16;
mod medmnist;
mod mhd;
mod panorama;
mod rsna;
mod sheet;
mod split;

use std::path::Path;
use std::str::FromStr;

pub use folder::Made;

use crate::Error;

/// A data set that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataSet {
    /// MedMNIST's 3D sets, an `.npz` file.
    MedMnist,
    /// RSNA 2023 Abdominal Trauma Detection.
    RsnaAbdominal,
    /// PANORAMA, pancreatic cancer.
    Panorama,
    /// LUNA16, lung nodules and candidates.
    Luna16,
    /// LIDC-IDRI, lung nodules as four readers saw them.
    Lidc,
    /// CT-RATE, chest CT.
    CtRate,
    /// CQ500, head CT.
    Cq500,
}

impl DataSet {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::MedMnist,
        Self::RsnaAbdominal,
        Self::Panorama,
        Self::Luna16,
        Self::Lidc,
        Self::CtRate,
        Self::Cq500,
    ];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::MedMnist => "medmnist",
            Self::RsnaAbdominal => "rsna-abdominal",
            Self::Panorama => "panorama",
            Self::Luna16 => "luna16",
            Self::Lidc => "lidc",
            Self::CtRate => "ct-rate",
            Self::Cq500 => "cq500",
        }
    }
}

impl FromStr for DataSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|set| set.name() == name).ok_or_else(|| {
            let problem =
                format!("`{name}` is no data set, expected {}", Self::ALL.map(Self::name).join(", "));
            Error::Flag { flag: "the data set", problem }
        })
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The task folders.
    pub tasks: Vec<Made>,
    /// What was left out and why, a sentence each.
    pub notes: Vec<String>,
}

/// Writes the tasks of the data set `set` under `root` into the folder `out`; `names` are MedMNIST's label columns. `progress` is told
/// what is done of how much, where that takes long.
///
/// # Errors
/// A layout that is not the data set's is an [`Error::Import`] that names the file and what was expected; nothing is written then, or
/// no `data.csv`.
pub fn import(
    set: DataSet,
    root: &Path,
    out: &Path,
    names: &[String],
    progress: &dyn Fn(usize, usize),
) -> Result<Imported, Error> {
    if set != DataSet::MedMnist && !names.is_empty() {
        let problem = format!("the labels of {} have names already, leave it out", set.name());
        return Err(Error::Flag { flag: "--labels", problem });
    }
    if set != DataSet::MedMnist && !root.is_dir() {
        return Err(wrong(root, format!("it is no folder, expected that of {}", set.name())));
    }
    let mut made = match set {
        DataSet::MedMnist => medmnist::import(root, out, names),
        DataSet::RsnaAbdominal => rsna::import(root, out),
        DataSet::Panorama => panorama::import(root, out, progress),
        DataSet::Luna16 => luna16::import(root, out, progress),
        DataSet::Lidc => lidc::import(root, out, progress),
        DataSet::CtRate => ct_rate::import(root, out),
        DataSet::Cq500 => cq500::import(root, out, progress),
    }?;
    made.notes.extend(made.tasks.iter().filter_map(Made::empty_splits));
    Ok(made)
}

fn wrong(path: &Path, problem: impl Into<String>) -> Error {
    Error::Import { path: path.into(), problem: problem.into() }
}
