//! LIDC-IDRI: whether readers think a lung nodule malignant.
//!
//! The layout (<https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX>): a folder a patient, `LIDC-IDRI-0001`, and in it, by study and series,
//! `*.dcm`; the readings as one `.xml` a scan in the same folder, or apart from the scans (`LIDC-XML-only.zip`). Series are told by their
//! UID, so that the names of folders below the patient's do not matter.

mod group;
mod readings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::volume::{Header, ReadOptions, Volume, VolumeError, read, write_nifti};

use super::crop::cube;
use super::folder::{LeftOut, Row, files_under, write};
use super::luna16::SIDE_MM;
use super::{Imported, split, wrong};
use crate::Error;
use group::group;
use readings::{Nodule, Readings};

const TASK: &str = include_str!("../../tasks/lidc.toml");

/// A nodule counts where so many of the four readers rated it, as in LUNA16's reference.
const READERS: usize = 3;

/// Marks of one nodule by several readers.
struct Rated {
    /// Voxel index, fractional.
    centre: [f64; 3],
    malignancy: f64,
    readers: usize,
}

/// Writes a crop of each nodule to `out/crops`: malignant where the readers' mean is above 3, benign below; a mean of 3 is left out.
pub(super) fn import(root: &Path, out: &Path, progress: &dyn Fn(usize, usize)) -> Result<Imported, Error> {
    let files = files_under(root)?;
    let series = series(&files)?;
    let readings = all_readings(root, &files)?;
    let mut missing = LeftOut::new("readings without a series");
    let mut unread = LeftOut::new("series that cannot be read");
    let mut few = LeftOut::new("nodules rated by too few readers");
    let mut undecided = LeftOut::new("nodules with a mean rating of 3");
    // By patient, so that nodules are numbered the same wherever the readings lie.
    let mut work = Vec::new();
    for (uid, readings) in &readings {
        match series.get(uid) {
            Some(folder) => work.push((patient(folder)?, uid, folder, readings)),
            None => missing.add(uid),
        }
    }
    work.sort_by_key(|(patient, uid, ..)| (patient.clone(), *uid));
    let crops = out.join("crops");
    let mut rows: Vec<Row> = Vec::new();
    for (done, (patient, uid, folder, readings)) in work.iter().enumerate() {
        progress(done, work.len());
        let Some(volume) = unread.unless_readable(one_series(folder, uid))? else { continue };
        std::fs::create_dir_all(&crops).map_err(Error::io(&crops))?;
        for nodule in rated(&volume, readings) {
            let earlier = rows.iter().filter(|row| row.patient.as_ref() == Some(patient)).count();
            let id = format!("{patient}-{}", earlier + 1);
            if nodule.readers < READERS {
                few.add(format!("in series {uid}"));
            } else if (nodule.malignancy - 3.0).abs() < 1e-9 {
                undecided.add(format!("in series {uid}"));
            } else {
                let image = PathBuf::from(format!("crops/{id}.nii.gz"));
                let crop = cube(&volume, nodule.centre, SIDE_MM);
                write_nifti(&out.join(&image), crop.dims, &crop.voxels, &crop.geometry)
                    .map_err(runtime::Error::from)?;
                rows.push(row(id, patient, image, &nodule));
            }
        }
    }
    let notes: Vec<String> =
        [missing, unread, few, undecided].into_iter().filter_map(LeftOut::note).collect();
    let made = write(root, out, TASK, &["malignancy", "readers"], &rows, &notes)?;
    Ok(Imported { tasks: vec![made], notes })
}

fn row(id: String, patient: &str, image: PathBuf, nodule: &Rated) -> Row {
    Row {
        id,
        patient: Some(patient.to_owned()),
        split: split::of_patient(patient),
        image,
        mask: None,
        targets: vec![nodule.malignancy > 3.0],
        extra: vec![format!("{:.2}", nodule.malignancy), nodule.readers.to_string()],
    }
}

/// The folder of each series, by its UID as the folder's first file says it.
fn series(files: &[PathBuf]) -> Result<BTreeMap<String, PathBuf>, Error> {
    let mut firsts: BTreeMap<&Path, &Path> = BTreeMap::new();
    for path in
        files.iter().filter(|path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("dcm")))
    {
        if let Some(folder) = path.parent() {
            firsts.entry(folder).or_insert(path);
        }
    }
    let mut series = BTreeMap::new();
    for (folder, first) in firsts {
        let header = Header::read(first).map_err(runtime::Error::from)?;
        if let Some(uid) = header.series_uid {
            series.insert(uid, folder.to_owned());
        }
    }
    Ok(series)
}

/// What the readers marked in each series, by its UID.
fn all_readings(root: &Path, files: &[PathBuf]) -> Result<BTreeMap<String, Readings>, Error> {
    let mut found = BTreeMap::new();
    for path in
        files.iter().filter(|path| path.extension().is_some_and(|end| end.eq_ignore_ascii_case("xml")))
    {
        if let Some((uid, readings)) = readings::read(path)? {
            found.insert(uid, readings);
        }
    }
    if found.is_empty() {
        return Err(wrong(root, "it has no .xml file with readings of CT, expected those of LIDC-IDRI"));
    }
    Ok(found)
}

/// The part of the path that names the patient.
fn patient(folder: &Path) -> Result<String, Error> {
    let parts = folder.iter().map(|part| part.to_string_lossy());
    parts.rev().find(|part| part.starts_with("LIDC-IDRI-")).map(String::from).ok_or_else(|| {
        wrong(folder, "no folder on the way there names the patient, expected one like LIDC-IDRI-0001")
    })
}

/// The series `uid` of a folder.
fn one_series(folder: &Path, uid: &str) -> Result<Volume, VolumeError> {
    let mut volumes = read(folder, &ReadOptions::default())?;
    let wanted = volumes.iter().position(|volume| volume.source.series_uid.as_deref() == Some(uid));
    Ok(volumes.swap_remove(wanted.unwrap_or(0)))
}

/// The marks of all readers, put together nodule by nodule.
fn rated(volume: &Volume, readings: &Readings) -> Vec<Rated> {
    let slices: BTreeMap<&str, usize> =
        volume.source.instances.iter().enumerate().map(|(k, uid)| (uid.as_str(), k)).collect();
    let outline = |nodule: &Nodule| -> Vec<[f64; 3]> {
        let at =
            |point: &readings::Point| Some([point.x, point.y, *slices.get(point.slice.as_str())? as f64]);
        nodule.outline.iter().filter_map(at).collect()
    };
    let marks: Vec<(&Nodule, Vec<[f64; 3]>)> = readings
        .iter()
        .map(|nodule| (nodule, outline(nodule)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let spacing = volume.spacing();
    let in_mm = |points: &Vec<[f64; 3]>| -> Vec<[f64; 3]> {
        points.iter().map(|p| std::array::from_fn(|axis| p[axis] * spacing[axis])).collect()
    };
    let outlines: Vec<Vec<[f64; 3]>> = marks.iter().map(|(_, points)| in_mm(points)).collect();
    let one = |members: Vec<usize>| {
        let mean =
            |of: &dyn Fn(usize) -> f64| members.iter().map(|&m| of(m)).sum::<f64>() / members.len() as f64;
        let middle = |m: usize, axis: usize| {
            let points = &marks[m].1;
            points.iter().map(|p| p[axis]).sum::<f64>() / points.len() as f64
        };
        Rated {
            centre: std::array::from_fn(|axis| mean(&|m| middle(m, axis))),
            malignancy: mean(&|m| marks[m].0.malignancy),
            readers: members
                .iter()
                .map(|&m| marks[m].0.reader)
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
        }
    };
    group(&outlines, spacing[2]).into_iter().map(one).collect()
}
