//! RSNA 2023 Abdominal Trauma Detection: a suite of a task an organ.
//!
//! The layout (<https://www.kaggle.com/competitions/rsna-2023-abdominal-trauma-detection/data>): `train_2024.csv`, in the first release
//! `train.csv`, a row a patient; `train_series_meta.csv`, a row a series; `train_images/PATIENT/SERIES/NUMBER.dcm`.

use std::collections::HashMap;
use std::path::Path;

use super::folder::{LeftOut, Row, absolute, first_of, write};
use super::sheet::Sheet;
use super::{Imported, split};
use crate::Error;

const TASK: &str = include_str!("../../tasks/rsna-abdominal.toml");

/// Each task's name and the columns of which one or none is 1 where there is an injury, of whatever grade.
const ORGANS: [(&str, &[&str]); 5] = [
    ("bowel", &["bowel_injury"]),
    ("extravasation", &["extravasation_injury"]),
    ("kidney", &["kidney_low", "kidney_high"]),
    ("liver", &["liver_low", "liver_high"]),
    ("spleen", &["spleen_low", "spleen_high"]),
];

/// A series that is there.
struct Series {
    patient: String,
    name: String,
    /// The contrast's phase, and whether an organ is cut off.
    extra: Vec<String>,
}

/// Every series of a patient is a row with the patient's labels; a patient's rows are in one split.
pub(super) fn import(root: &Path, out: &Path) -> Result<Imported, Error> {
    let labels = first_of(root, &["train_2024.csv", "train.csv"])?;
    let injuries = injuries(&labels)?;
    let images = absolute(&first_of(root, &["train_images"])?)?;
    let mut missing = LeftOut::new("series of train_series_meta.csv that are not in train_images");
    let series = series(root, &images, &mut missing)?;

    let mut bare = LeftOut::new("patients without a series that is there");
    let mut unknown = LeftOut::new("series of no patient of the labels");
    let mut patients: Vec<&String> = injuries.keys().collect();
    patients.sort_unstable();
    for patient in patients {
        if !series.iter().any(|one| one.patient == *patient) {
            bare.add(patient);
        }
    }
    let mut known: Vec<&Series> = Vec::new();
    for one in &series {
        if injuries.contains_key(&one.patient) {
            known.push(one);
        } else {
            unknown.add(format!("{}/{}", one.patient, one.name));
        }
    }
    let notes: Vec<String> = [missing, bare, unknown].into_iter().filter_map(LeftOut::note).collect();
    let mut tasks = Vec::new();
    for (index, (organ, _)) in ORGANS.into_iter().enumerate() {
        let row = |one: &&Series| Row {
            id: format!("{}-{}", one.patient, one.name),
            patient: Some(one.patient.clone()),
            split: split::of_patient(&one.patient),
            image: images.join(&one.patient).join(&one.name),
            mask: None,
            targets: vec![injuries[&one.patient][index]],
            extra: one.extra.clone(),
        };
        let rows: Vec<Row> = known.iter().map(row).collect();
        let task = TASK.replace("ORGAN", organ);
        tasks.push(write(root, &out.join(organ), &task, &["aortic_hu", "incomplete_organ"], &rows, &notes)?);
    }
    Ok(Imported { tasks, notes })
}

/// Each patient's injuries, in the order of [`ORGANS`].
fn injuries(path: &Path) -> Result<HashMap<String, [bool; 5]>, Error> {
    let sheet = Sheet::read(path)?;
    let patient = sheet.column("patient_id")?;
    let mut organs = Vec::new();
    for (_, names) in ORGANS {
        organs.push(names.iter().map(|name| sheet.column(name)).collect::<Result<Vec<_>, _>>()?);
    }
    let mut injuries = HashMap::new();
    for line in sheet.lines() {
        let mut found = [false; 5];
        for (found, columns) in found.iter_mut().zip(&organs) {
            for &column in columns {
                *found |= line.flag(column)?;
            }
        }
        injuries.insert(line.text(patient).to_owned(), found);
    }
    Ok(injuries)
}

fn series(root: &Path, images: &Path, missing: &mut LeftOut) -> Result<Vec<Series>, Error> {
    let sheet = Sheet::read(&first_of(root, &["train_series_meta.csv"])?)?;
    let [patient, series, phase, cut] =
        sheet.columns(["patient_id", "series_id", "aortic_hu", "incomplete_organ"])?;
    let mut found = Vec::new();
    for line in sheet.lines() {
        let [patient, series, phase, cut] = [patient, series, phase, cut].map(|column| line.text(column));
        if images.join(patient).join(series).is_dir() {
            let extra = vec![phase.to_owned(), cut.to_owned()];
            found.push(Series { patient: patient.into(), name: series.into(), extra });
        } else {
            missing.add(format!("{patient}/{series}"));
        }
    }
    Ok(found)
}
