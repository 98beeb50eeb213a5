//! LUNA16: candidates of lung nodules, as its track of false positive reduction has them.
//!
//! The layout (<https://luna16.grand-challenge.org/Data>): `subset0` to `subset9` with `UID.mhd` and `UID.raw`, and `candidates_V2.csv`, at
//! first `candidates.csv`, with `seriesuid`, `coordX`, `coordY`, `coordZ` (mm, LPS) and `class`, 1 for a nodule. `annotations.csv` repeats
//! the nodules with their diameters and is not read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::volume::{Volume, write_nifti};

use super::crop::{cube, index_of};
use super::folder::{LeftOut, Row, files_under, name, write};
use super::sheet::Sheet;
use super::{Imported, mhd, split, wrong};
use crate::Error;
use crate::data::Split;

const TASK: &str = include_str!("../../tasks/luna16.toml");

/// The side of a crop, in mm: what LUNA25's baseline gives its networks, and more than the largest nodule.
pub(super) const SIDE_MM: f64 = 50.0;

/// Candidates that are no nodule are five hundred times as many as nodules: so many of each scan are taken.
const NEGATIVES: usize = 10;

/// A place where there may be a nodule.
struct Candidate {
    /// Its number in the scan, in the order of the table, from 1.
    number: usize,
    /// In mm, RAS+.
    place: [f64; 3],
    nodule: bool,
    /// Decides which are taken.
    draw: f64,
}

/// Writes a crop of each nodule, and of [`NEGATIVES`] other candidates a scan, drawn by hash, to `out/crops`. The subsets are those of the
/// data set's own cross-validation: 0 to 7 for training, 8 for validation, 9 for the test.
pub(super) fn import(root: &Path, out: &Path, progress: &dyn Fn(usize, usize)) -> Result<Imported, Error> {
    let files = files_under(root)?;
    let scans: BTreeMap<String, (Split, &Path)> = files.iter().filter_map(|path| scan(path)).collect();
    let mut candidates = candidates(root, &files)?;
    let mut missing = LeftOut::new("scans with candidates that are in no subset folder");
    candidates.retain(|uid, _| {
        let there = scans.contains_key(uid);
        if !there {
            missing.add(uid);
        }
        there
    });
    let folder = out.join("crops");
    let (mut rows, total) = (Vec::new(), candidates.len());
    for (done, (uid, found)) in candidates.into_iter().enumerate() {
        progress(done, total);
        let (split, path) = scans[&uid];
        let volume = mhd::read(path)?;
        std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        for candidate in taken(found) {
            let id = format!("{uid}-{}", candidate.number);
            let image = PathBuf::from(format!("crops/{id}.nii.gz"));
            crop(path, &volume, &candidate, &out.join(&image))?;
            let (patient, targets) = (Some(uid.clone()), vec![candidate.nodule]);
            rows.push(Row { id, patient, split, image, mask: None, targets, extra: Vec::new() });
        }
    }
    let notes: Vec<String> = missing.note().into_iter().collect();
    let made = write(root, out, TASK, &[], &rows, &notes)?;
    Ok(Imported { tasks: vec![made], notes })
}

/// UID and split of `subsetN/UID.mhd`.
fn scan(path: &Path) -> Option<(String, (Split, &Path))> {
    let uid = name(path).strip_suffix(".mhd")?.to_owned();
    let subset = name(path.parent()?);
    let split = match subset.strip_prefix("subset")?.parse().ok()? {
        0..=7u8 => Split::Train,
        8 => Split::Val,
        9 => Split::Test,
        _ => return None,
    };
    Some((uid, (split, path)))
}

/// The candidates of each scan.
fn candidates(root: &Path, files: &[PathBuf]) -> Result<BTreeMap<String, Vec<Candidate>>, Error> {
    let called = |wanted: &str| files.iter().find(|path| name(path) == wanted);
    let path = called("candidates_V2.csv").or_else(|| called("candidates.csv")).ok_or_else(|| {
        wrong(root, "it has no candidates_V2.csv or candidates.csv, expected the folder of LUNA16")
    })?;
    let sheet = Sheet::read(path)?;
    let [uid, x, y, z, class] = sheet.columns(["seriesuid", "coordX", "coordY", "coordZ", "class"])?;
    let mut found: BTreeMap<String, Vec<Candidate>> = BTreeMap::new();
    for line in sheet.lines() {
        let of = found.entry(line.text(uid).to_owned()).or_default();
        let place = [-line.number(x)?, -line.number(y)?, line.number(z)?];
        let key = [uid, x, y, z].map(|column| line.text(column)).join(":");
        let (number, draw) = (of.len() + 1, split::place(&format!("draw:{key}")));
        of.push(Candidate { number, place, nodule: line.flag(class)?, draw });
    }
    Ok(found)
}

/// All nodules, and the drawn ones of the others.
fn taken(mut found: Vec<Candidate>) -> Vec<Candidate> {
    found.sort_by(|a, b| b.nodule.cmp(&a.nodule).then(a.draw.total_cmp(&b.draw)));
    let nodules = found.iter().filter(|candidate| candidate.nodule).count();
    found.truncate(nodules + NEGATIVES);
    found.sort_by_key(|candidate| candidate.number);
    found
}

fn crop(scan: &Path, volume: &Volume, candidate: &Candidate, to: &Path) -> Result<(), Error> {
    let centre = index_of(&volume.geometry, candidate.place);
    let inside = |axis: usize| (-0.5..volume.dims[axis] as f64 - 0.5).contains(&centre[axis]);
    if !(0..3).all(inside) {
        let problem = format!(
            "candidate {} lies outside of it, expected a place in the scan; get it and the table again",
            candidate.number
        );
        return Err(wrong(scan, problem));
    }
    let crop = cube(volume, centre, SIDE_MM);
    write_nifti(to, crop.dims, &crop.voxels, &crop.geometry).map_err(runtime::Error::from)?;
    Ok(())
}
