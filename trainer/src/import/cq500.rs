//! CQ500: findings of head CT.
//!
//! The layout (<http://headctstudy.qure.ai/dataset>): `reads.csv` with `name` (`CQ500-CT-0`) and 14 findings of each of three readers
//! (`R1:ICH` …), and a folder a patient, `CQ500CT0 CQ500CT0/Unknown Study/SERIES/*.dcm`, with series by their description.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runtime::volume::{Arrangement, Instance, VolumeError};

use super::folder::{LeftOut, Row, absolute, checked, files_under, first_of, folders_in, name, write};
use super::sheet::Sheet;
use super::{Imported, split};
use crate::Error;

const TASK: &str = include_str!("../../tasks/cq500.toml");

/// The findings of `reads.csv` that the task does not learn, which go into the table all the same.
const OTHERS: [&str; 5] =
    ["Fracture", "OtherFracture", "ChronicBleed", "BleedLocation-Left", "BleedLocation-Right"];

/// What in a series' name says that it is not a plain one in a soft kernel: contrast, bone, sinuses, orbits, scouts.
const UNLIKE: [&str; 12] =
    ["bone", "post", "contrast", "cect", "angio", "cc", "iv", "hires", "hi res", "pns", "orbit", "scout"];

/// The least number of slices that is a head.
const LEAST: usize = 10;

/// One series a patient: plain, and thick before thin. A label holds where two of the three readers say so.
pub(super) fn import(root: &Path, out: &Path, progress: &dyn Fn(usize, usize)) -> Result<Imported, Error> {
    let sheet = Sheet::read(&first_of(root, &["reads.csv"])?)?;
    let patients = patients(&absolute(root)?)?;
    let patient = sheet.column("name")?;
    let labels = checked(root, TASK)?.labels;
    let findings: Vec<[usize; 3]> = labels
        .iter()
        .map(String::as_str)
        .chain(OTHERS)
        .map(|finding| {
            let [a, b, c] = ["R1", "R2", "R3"].map(|reader| sheet.column(&format!("{reader}:{finding}")));
            Ok([a?, b?, c?])
        })
        .collect::<Result<_, Error>>()?;
    let mut missing = LeftOut::new("patients of reads.csv without a folder");
    let mut unfit = LeftOut::new("patients without a plain series that can be read");
    let (mut rows, total) = (Vec::new(), sheet.lines().count());
    for (done, line) in sheet.lines().enumerate() {
        progress(done, total);
        let id = line.text(patient);
        let number = number(id).ok_or_else(|| line.wrong(patient, "a name like CQ500-CT-0"))?;
        let Some(folder) = patients.get(&number) else {
            missing.add(id);
            continue;
        };
        let Some(image) = series(folder, &mut unfit)? else { continue };
        let mut found = Vec::new();
        for readers in &findings {
            let votes = readers.map(|column| line.flag(column));
            let [a, b, c] = votes;
            found.push(u8::from(a?) + u8::from(b?) + u8::from(c?) >= 2);
        }
        let extra =
            found.split_off(labels.len()).into_iter().map(|flag| u8::from(flag).to_string()).collect();
        let split = split::of_patient(id);
        let patient = Some(id.to_owned());
        rows.push(Row { id: id.into(), patient, split, image, mask: None, targets: found, extra });
    }
    let notes: Vec<String> = [missing, unfit].into_iter().filter_map(LeftOut::note).collect();
    let made = write(root, out, TASK, &OTHERS, &rows, &notes)?;
    Ok(Imported { tasks: vec![made], notes })
}

/// The number in `CQ500-CT-0` or `CQ500CT0 CQ500CT0`.
fn number(name: &str) -> Option<u32> {
    let rest = name.strip_prefix("CQ500")?;
    let rest = rest.trim_start_matches(['-', 'C', 'T', '_', ' ']);
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The patients' folders, in `root` or in a folder of it, by number.
fn patients(root: &Path) -> Result<BTreeMap<u32, PathBuf>, Error> {
    let mut found = BTreeMap::new();
    for folder in folders_in(root)? {
        match number(&name(&folder)) {
            Some(number) => {
                found.insert(number, folder);
            }
            None => found.extend(
                folders_in(&folder)?.into_iter().filter_map(|folder| Some((number(&name(&folder))?, folder))),
            ),
        }
    }
    Ok(found)
}

/// The first series of a patient, in the order of preference, that is one volume.
fn series(patient: &Path, unfit: &mut LeftOut) -> Result<Option<PathBuf>, Error> {
    let mut files: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for path in files_under(patient)? {
        if let (true, Some(folder)) = (path.extension().is_some_and(|end| end == "dcm"), path.parent()) {
            files.entry(folder.to_owned()).or_default().push(path);
        }
    }
    let mut candidates: Vec<(_, PathBuf, Vec<PathBuf>)> = files
        .into_iter()
        .filter(|(_, files)| files.len() >= LEAST)
        .filter_map(|(folder, files)| Some((preference(&name(&folder))?, folder, files)))
        .collect();
    candidates.sort();
    let mut reason = format!("{}: no series is plain and of {LEAST} slices or more", name(patient));
    for (_, folder, files) in candidates {
        let mut why = LeftOut::new("");
        match why.unless_readable(arrange(&folder, &files))? {
            Some(()) => return Ok(Some(folder)),
            None => reason = why.first(),
        }
    }
    unfit.add(reason);
    Ok(None)
}

/// Smaller is better; `None` where the name says that it is not what is wanted. Thick slices before thin ones, since those are what
/// readers look at.
fn preference(series: &str) -> Option<(bool, bool)> {
    let name = series.to_lowercase().replace("pre contrast", "plain").replace("non contrast", "plain");
    let words: Vec<&str> = name.split(|c: char| !c.is_alphanumeric()).collect();
    // Two letters say something at the end of a word only: `4cc`, `iv`.
    let says = |part: &str| match part.len() {
        2 => words.iter().any(|word| word.ends_with(part)),
        _ => name.contains(part),
    };
    let thin = says("thin") || says("0.625");
    (!UNLIKE.into_iter().any(says)).then_some((thin, !says("plain")))
}

/// Whether files are one volume, by their headers alone.
fn arrange(folder: &Path, files: &[PathBuf]) -> Result<(), VolumeError> {
    let instances = files.iter().map(|file| Instance::open(file)).collect::<Result<Vec<_>, _>>()?;
    let uid = instances.first().map(|instance| instance.series_uid().to_owned());
    if instances.iter().any(|instance| Some(instance.series_uid()) != uid.as_deref()) {
        let problem = "its files are of several series".to_owned();
        return Err(VolumeError::Series { path: folder.to_owned(), problem });
    }
    Arrangement::new(folder, instances).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_series_are_told_by_name_and_thick_ones_go_first() {
        for unlike in
            ["CT BONE", "CT POST CONTRAST-2", "CT 4cc sec 150cc D3D on", "CT ORAL IV", "CT CECT THIN"]
        {
            assert_eq!(preference(unlike), None, "{unlike}");
        }
        let mut names = ["CT Thin Plain", "CT 5mm", "CT Plain", "CT 0.625mm", "CT PRE CONTRAST 5MM STD"];
        names.sort_by_key(|name| preference(name).unwrap());
        assert_eq!(names, ["CT Plain", "CT PRE CONTRAST 5MM STD", "CT 5mm", "CT Thin Plain", "CT 0.625mm"]);
        assert_eq!(
            [number("CQ500-CT-12"), number("CQ500CT7 CQ500CT7"), number("other")],
            [Some(12), Some(7), None]
        );
    }
}
