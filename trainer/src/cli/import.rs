use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::Error;
use trainer::import::{DataSet, import};

use super::{print, progress_bar};

/// Make tasks of a public data set: task.toml and data.csv in a folder, ready for `fit` and `compare --suite`.
///
/// Data sets: rsna-abdominal (a suite, one task an organ), panorama, luna16, lidc, ct-rate, cq500, each with its folder as its makers lay
/// it out, and medmnist with an .npz file, which may be given alone. Scans stay where they are; crops, masks and arrays are written as
/// NIfTI. Rows of one patient are in one split, where the set says whose they are. docs/datasets.md has what was chosen.
#[derive(Args)]
pub(super) struct Import {
    /// The data set, or a MedMNIST 3D file
    #[arg(value_name = "DATASET|NPZ")]
    source: PathBuf,
    /// The data set's folder, or file
    #[arg(value_name = "ROOT")]
    root: Option<PathBuf>,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Names of MedMNIST's label columns, separated by commas [default: label, or label_0 …, or class_0 … for several classes]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    labels: Vec<String>,
}

/// Imports, and prints what came out.
pub(super) fn run(args: &Import) -> Result<()> {
    let name = args.source.to_string_lossy();
    let (set, root) = match (&args.root, name.parse::<DataSet>()) {
        (Some(root), set) => (set?, root),
        (None, Ok(set)) if !args.source.exists() => {
            let problem = format!("its folder is missing, expected `import {} ROOT --out DIR`", set.name());
            return Err(Error::Flag { flag: "the data set", problem }.into());
        }
        (None, _) => (DataSet::MedMnist, &args.source),
    };
    let bar = progress_bar("scans")?;
    let made = import(set, root, &args.out, &args.labels, &|done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    made.notes.iter().for_each(|note| tracing::warn!("{note}"));
    print(&made.tasks.iter().map(ToString::to_string).collect::<String>())
}
