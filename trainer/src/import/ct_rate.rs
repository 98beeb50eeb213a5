//! CT-RATE: 18 findings of chest CT.
//!
//! The layout (<https://huggingface.co/datasets/ibrahimhamamci/CT-RATE>): under `dataset`, `multi_abnormality_labels` with
//! `train_predicted_labels.csv` and `valid_predicted_labels.csv` (`VolumeName` and a column a finding), and the volume `train_1_a_1.nii.gz`,
//! patient 1, scan a, reconstruction 1, as `train_fixed/train_1/train_1_a/train_1_a_1.nii.gz`. The folders `train` and `valid` of the first
//! release have the same files with blank headers: neither HU nor spacing.

use std::path::{Path, PathBuf};

use super::folder::{LeftOut, Row, absolute, checked, first_of, write};
use super::sheet::Sheet;
use super::{Imported, split};
use crate::Error;
use crate::data::Split;

const TASK: &str = include_str!("../../tasks/ct-rate.toml");

/// The data set's own `valid` is the test, since nothing else has labels; a tenth of the other patients is for validation.
pub(super) fn import(root: &Path, out: &Path) -> Result<Imported, Error> {
    // Either the repository or its folder `dataset`.
    let root = if root.join("dataset").is_dir() { absolute(&root.join("dataset"))? } else { absolute(root)? };
    let labels = checked(&root, TASK)?.labels;
    let sheets = first_of(&root, &["multi_abnormality_labels"])?;
    let mut missing = LeftOut::new("volumes of the label tables that are not there");
    let (mut rows, mut notes) = (Vec::new(), Vec::new());
    for part in ["train", "valid"] {
        let (volumes, blank) = volumes(&root, part);
        if blank {
            notes.push(format!(
                "{} is of the first release, whose headers lack HU and spacing; take {part}_fixed unless you mended them",
                volumes.display()
            ));
        }
        let sheet = Sheet::read(&first_of(&sheets, &[&format!("{part}_predicted_labels.csv")])?)?;
        let volume = sheet.column("VolumeName")?;
        let columns = labels.iter().map(|label| sheet.column(label)).collect::<Result<Vec<_>, _>>()?;
        for line in sheet.lines() {
            let Some([patient, scan, id]) = names(line.text(volume), part) else {
                return Err(line.wrong(volume, &format!("a name like {part}_1_a_1.nii.gz")));
            };
            let image = volumes.join(&patient).join(scan).join(line.text(volume));
            if !image.is_file() {
                missing.add(line.text(volume));
                continue;
            }
            let targets = columns.iter().map(|&column| line.flag(column)).collect::<Result<_, _>>()?;
            let split = if part == "valid" { Split::Test } else { split::train_or_val(&patient) };
            rows.push(Row {
                id,
                patient: Some(patient),
                split,
                image,
                mask: None,
                targets,
                extra: Vec::new(),
            });
        }
    }
    notes.extend(missing.note());
    let made = write(&root, out, TASK, &[], &rows, &notes)?;
    Ok(Imported { tasks: vec![made], notes })
}

/// The folder of a part's volumes, and whether their headers are blank.
fn volumes(root: &Path, part: &str) -> (PathBuf, bool) {
    let fixed = root.join(format!("{part}_fixed"));
    if fixed.is_dir() { (fixed, false) } else { (root.join(part), root.join(part).is_dir()) }
}

/// Patient, scan and volume of `train_1_a_1.nii.gz`: `train_1`, `train_1_a`, `train_1_a_1`.
fn names(file: &str, part: &str) -> Option<[String; 3]> {
    let id = file.strip_suffix(".nii.gz")?;
    let [found, number, scan, _] = id.split('_').collect::<Vec<_>>()[..] else { return None };
    (found == part).then(|| [format!("{part}_{number}"), format!("{part}_{number}_{scan}"), id.to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_has_the_challenges_labels_in_its_order() {
        assert_eq!(checked(Path::new("ct-rate.toml"), TASK).unwrap().labels, crate::vlm3d::LABELS);
    }
}
