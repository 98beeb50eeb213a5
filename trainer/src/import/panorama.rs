//! PANORAMA: pancreatic ductal adenocarcinoma on portal-venous CT.
//!
//! The layout (<https://panorama.grand-challenge.org>): scans `PATIENT_STUDY_0000.nii.gz` in the folders of four batches on Zenodo
//! (<https://doi.org/10.5281/zenodo.13715870> and three more), and <https://github.com/DIAGNijmegen/panorama_labels> with
//! `manual_labels/PATIENT_STUDY.nii.gz` and `automatic_labels/…`, each a mask of 1 lesion, 2 veins, 3 arteries, 4 parenchyma, 5 duct and
//! 6 bile duct.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::volume::{ReadOptions, read, write_nifti};

use super::folder::{LeftOut, Row, absolute, files_under, name, write};
use super::{Imported, split, wrong};
use crate::Error;

const TASK: &str = include_str!("../../tasks/panorama.toml");

/// The masks' value of the lesion.
const LESION: f32 = 1.0;

/// Scans and masks may lie anywhere under `root`. Writes masks of the lesion alone to `out/masks`; a scan is positive where there is one.
pub(super) fn import(root: &Path, out: &Path, progress: &dyn Fn(usize, usize)) -> Result<Imported, Error> {
    let files = files_under(&absolute(root)?)?;
    let scans = scans(&files);
    let masks = masks(&files);
    if masks.is_empty() {
        return Err(wrong(
            root,
            "it has no folder manual_labels or automatic_labels with masks, expected the repository panorama_labels in it",
        ));
    }
    let folder = out.join("masks");
    let mut unlabelled = LeftOut::new("scans without a mask");
    let mut unread = LeftOut::new("masks that cannot be read");
    let mut missing = LeftOut::new("masks without a scan");
    for study in masks.keys().filter(|study| !scans.contains_key(*study)) {
        missing.add(*study);
    }
    let mut rows = Vec::new();
    for (done, (study, image)) in scans.iter().enumerate() {
        progress(done, scans.len());
        let Some(mask) = masks.get(study) else {
            unlabelled.add(*study);
            continue;
        };
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let file = PathBuf::from(format!("masks/{study}.nii.gz"));
        let Some(positive) = unread.unless_readable(lesion(mask, &out.join(&file)))? else { continue };
        let patient = study.split('_').next().unwrap_or(study);
        rows.push(Row {
            id: (*study).to_owned(),
            patient: Some(patient.into()),
            split: split::of_patient(patient),
            image: (*image).clone(),
            mask: Some(file),
            targets: vec![positive],
            extra: vec![name(mask.parent().unwrap_or(mask))],
        });
    }
    let notes: Vec<String> = [missing, unlabelled, unread].into_iter().filter_map(LeftOut::note).collect();
    let made = write(root, out, TASK, &["annotation"], &rows, &notes)?;
    Ok(Imported { tasks: vec![made], notes })
}

/// The scans by study, `PATIENT_STUDY`.
fn scans(files: &[PathBuf]) -> BTreeMap<&str, &PathBuf> {
    let study = |path| file_name(path)?.strip_suffix("_0000.nii.gz");
    files.iter().filter_map(|path| Some((study(path)?, path))).collect()
}

/// The masks by study; a manual one goes before an automatic one.
fn masks(files: &[PathBuf]) -> BTreeMap<&str, &PathBuf> {
    let of = |folder: &'static str| {
        let inside = move |path: &&PathBuf| path.parent().is_some_and(|parent| parent.ends_with(folder));
        files.iter().filter(inside).filter_map(|path| Some((file_name(path)?.strip_suffix(".nii.gz")?, path)))
    };
    of("automatic_labels").chain(of("manual_labels")).collect()
}

fn file_name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Writes the lesion of `mask` as 0 and 1, and says whether there is any.
fn lesion(mask: &Path, to: &Path) -> Result<bool, runtime::volume::VolumeError> {
    let mut positive = false;
    for mut volume in read(mask, &ReadOptions::default())? {
        for voxel in &mut volume.voxels {
            *voxel = if (*voxel - LESION).abs() < 0.5 { 1.0 } else { 0.0 };
        }
        positive = volume.voxels.contains(&1.0);
        write_nifti(to, volume.dims, &volume.voxels, &volume.geometry)?;
    }
    Ok(positive)
}
