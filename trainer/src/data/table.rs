use std::collections::HashSet;
use std::path::{Path, PathBuf};

use firmware_config::MissingViews;
use serde::{Deserialize, Serialize};

use super::leak;
use crate::Error;
use crate::loss::Loss;
use crate::task::Task;

/// What a sample is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// Gradients.
    Train,
    /// Choice of checkpoint and thresholds.
    Val,
    /// Final figures only.
    Test,
}

impl Split {
    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Val => "val",
            Self::Test => "test",
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Unique in the table.
    pub id: String,
    /// Whose scan it is, where the table says so; no patient is in two splits.
    pub patient: Option<String>,
    /// What it is used for.
    pub split: Split,
    /// For each of the task's views, in their order, or for its only one: NIfTI file, DICOM file or folder of one series;
    /// relative paths are taken from the table's folder. At least one is there.
    pub images: Vec<Option<PathBuf>>,
    /// Where the finding is: voxels above 0.5 of a file on the image's voxels.
    pub mask: Option<PathBuf>,
    /// One a label of the task, `None` where not known.
    pub targets: Vec<Option<bool>>,
    /// Line in the table's file; the header is line 1.
    pub row: u64,
}

impl Sample {
    /// The image, or the first of those that are there.
    pub fn image(&self) -> &Path {
        self.images.iter().flatten().next().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// `data.csv`: a header row; `id`, `split`, `image` or `image:VIEW` for each view, optionally `patient` and, without views, `mask`,
/// and a column a label (0, 1 or empty). Other columns are ignored.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The file.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Its rows, in order.
    pub samples: Vec<Sample>,
}

impl Table {
    /// Reads and checks the table of a task, including that every image and mask is there. With `lenient` a label's column may be
    /// missing, all its values being unknown then.
    pub fn read(path: &Path, task: &Task, lenient: bool) -> Result<Self, Error> {
        let (labels, loss) = (&task.labels, task.loss);
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let whole = |problem: String| Error::Table { path: path.into(), problem };
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes.as_slice());
        let header = reader.headers().map_err(|e| whole(format!("its header is not CSV ({e})")))?.clone();
        let column = |name: &str| header.iter().position(|h| h.trim_start_matches('\u{feff}') == name);
        let need = |name: &str| {
            column(name).ok_or_else(|| {
                let found = header.iter().collect::<Vec<_>>().join(", ");
                whole(format!("it has no column `{name}`; its columns are {found}"))
            })
        };
        let (id, split) = (need("id")?, need("split")?);
        let image = |(view, _): &(Option<&str>, _)| {
            let name = view.map_or("image".to_owned(), |view| format!("image:{view}"));
            Ok((need(&name)?, name))
        };
        let images: Vec<(usize, String)> = task.inputs().iter().map(image).collect::<Result<_, Error>>()?;
        // A mask lies on the one scan of a row.
        let (patient, mask) = (column("patient"), column("mask").filter(|_| task.views.is_empty()));
        let labels: Vec<(&str, Option<usize>)> = labels
            .iter()
            .map(|label| Ok((label.as_str(), if lenient { column(label) } else { Some(need(label)?) })))
            .collect::<Result<_, Error>>()?;

        let mut seen = HashSet::new();
        let mut samples = Vec::new();
        for record in reader.records() {
            let record = record.map_err(|e| match e.position() {
                Some(at) => {
                    wrong(path, at.line(), format!("it is not CSV with {} fields ({e})", header.len()))
                }
                None => whole(e.to_string()),
            })?;
            let row = record.position().map_or(0, |at| line(&bytes, at));
            let wrong = |problem: String| wrong(path, row, problem);
            let of = |column: usize| record.get(column).unwrap_or_default();
            if of(id).is_empty() {
                return Err(wrong("its id is empty".into()));
            }
            if !seen.insert(of(id).to_owned()) {
                return Err(wrong(format!(
                    "its id `{}` is used by an earlier row, ids must be unique",
                    of(id)
                )));
            }
            let split = match of(split) {
                "train" => Split::Train,
                "val" => Split::Val,
                "test" => Split::Test,
                other => return Err(wrong(format!("its split is `{other}`, expected train, val or test"))),
            };
            let targets = labels
                .iter()
                .map(|&(label, column)| match column.map_or("", of) {
                    "0" => Ok(Some(false)),
                    "1" => Ok(Some(true)),
                    "" => Ok(None),
                    other => {
                        Err(wrong(format!("its label `{label}` is `{other}`, expected 0, 1 or nothing")))
                    }
                })
                .collect::<Result<Vec<_>, _>>()?;
            match loss {
                Loss::Ce => check_exclusive(&targets).map_err(wrong)?,
                Loss::Ordinal => check_ordered(&labels, &targets).map_err(wrong)?,
                Loss::Focal { .. } | Loss::Bce => {}
            }
            let image = |(column, name): &(usize, String)| {
                let file = folder.join(of(*column));
                if !of(*column).is_empty() && file.exists() {
                    return Ok(Some(file));
                }
                if of(*column).is_empty() && !task.views.is_empty() {
                    return Ok(None);
                }
                let what = name.replace("image:", "image of the view ");
                Err(wrong(format!("its {what} {} does not exist", file.display())))
            };
            let images = images.iter().map(image).collect::<Result<Vec<_>, Error>>()?;
            let missing = images.iter().filter(|image| image.is_none()).count();
            if missing == images.len() || (missing > 0 && task.missing_views == MissingViews::Refuse) {
                let views = task.view_names().join(", ");
                let all = if missing == images.len() { "at least one" } else { "each" };
                return Err(wrong(format!(
                    "it has no image for {missing} of the views {views}; give {all}, or say missing_views = \"pool\""
                )));
            }
            let patient = patient.map(of).filter(|name| !name.is_empty()).map(str::to_owned);
            let mask = mask.map(of).filter(|name| !name.is_empty()).map(|name| folder.join(name));
            if let Some(mask) = mask.as_ref().filter(|mask| !mask.exists()) {
                return Err(wrong(format!("its mask {} does not exist", mask.display())));
            }
            samples.push(Sample { id: of(id).into(), patient, split, images, mask, targets, row });
        }
        if samples.is_empty() {
            return Err(whole("it has no rows".into()));
        }
        leak::check(path, &samples)?;
        Ok(Self { path: path.into(), sha256: runtime::tensor::sha256(&bytes), samples })
    }

    /// Forgets the masks but those of the samples for which `wanted` holds, so that no others are read.
    pub fn keep_masks(&mut self, wanted: impl Fn(&Sample) -> bool) {
        for sample in &mut self.samples {
            if !wanted(sample) {
                sample.mask = None;
            }
        }
    }

    /// Puts the column `split` of the CSV file `path` in the place of the table's own, by `id`.
    pub fn resplit(&mut self, path: &Path) -> Result<(), Error> {
        let wrong = |problem: String| Error::Table { path: path.into(), problem };
        let splits = super::column(path, "split")?.ok_or_else(|| wrong("it has no column `split`".into()))?;
        for sample in &mut self.samples {
            sample.split = match splits.get(&sample.id).map(String::as_str) {
                Some("train") => Split::Train,
                Some("val") => Split::Val,
                Some("test") => Split::Test,
                found => {
                    let found = found.unwrap_or("missing");
                    return Err(wrong(format!(
                        "its split of `{}` is {found}, expected train, val or test",
                        sample.id
                    )));
                }
            };
        }
        leak::check(path, &self.samples)
    }

    /// Indices of the rows of a split, in the table's order.
    pub fn split(&self, split: Split) -> Vec<usize> {
        (0..self.samples.len()).filter(|&i| self.samples[i].split == split).collect()
    }
}

/// The line that a record starts at; the reader's own position lies before the empty lines that it skips.
fn line(bytes: &[u8], at: &csv::Position) -> u64 {
    let skipped = bytes[at.byte() as usize..].iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    at.line() + skipped.filter(|b| **b == b'\n').count() as u64
}

pub(super) fn wrong(path: &Path, row: u64, problem: String) -> Error {
    Error::Row { path: path.into(), row, problem }
}

/// Under cross-entropy exactly one label holds; it may be unknown which.
fn check_exclusive(targets: &[Option<bool>]) -> Result<(), String> {
    let positive = targets.iter().filter(|t| **t == Some(true)).count();
    let unknown = targets.iter().any(Option::is_none);
    if positive == 1 || (positive == 0 && unknown) {
        return Ok(());
    }
    Err(format!("{positive} of its labels are 1, but with cross-entropy exactly one must be"))
}

/// In an ordinal task a label holds only where all labels before it hold.
fn check_ordered(labels: &[(&str, Option<usize>)], targets: &[Option<bool>]) -> Result<(), String> {
    let Some(failed) = targets.iter().position(|t| *t == Some(false)) else { return Ok(()) };
    match targets[failed..].iter().position(|t| *t == Some(true)) {
        None => Ok(()),
        Some(after) => Err(format!(
            "its label `{}` is 0 but `{}` is 1, expected no 1 after a 0, since the labels of an ordinal task are rising grades",
            labels[failed].0,
            labels[failed + after].0
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(loss: Loss, views: &str) -> Task {
        let toml = "name = 't'\nversion = '1.0.0'\nlabels = ['x', 'y']\n\
             recipe = { plane = 'axial', size = [28, 42], intensity = { kind = 'z-score' } }\n";
        Task { loss, ..toml::from_str(&format!("{toml}{views}")).unwrap() }
    }

    fn read(text: &str, loss: Loss, lenient: bool) -> Result<Table, Error> {
        read_for(&task(loss, ""), text, lenient)
    }

    fn read_for(task: &Task, text: &str, lenient: bool) -> Result<Table, Error> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.nii", "b.nii"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let path = folder.path().join("data.csv");
        std::fs::write(&path, text).unwrap();
        Table::read(&path, task, lenient)
    }

    #[test]
    fn views_have_a_column_each_and_may_be_missing_where_that_is_said() {
        let views = "[views.axial]\n[views.sag]\n";
        let refuse = task(Loss::Bce, views);
        let pool = task(Loss::Bce, &format!("missing_views = 'pool'\n{views}"));
        let header = "id,split,image:sag,image:axial,x,y\n";
        let table = read_for(&refuse, &format!("{header}1,train,a.nii,b.nii,0,1\n"), false).unwrap();
        let names = |sample: &Sample| -> Vec<Option<String>> {
            let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
            sample.images.iter().map(|image| image.as_ref().map(name)).collect()
        };
        assert_eq!(names(&table.samples[0]), [Some("b.nii".to_owned()), Some("a.nii".into())]);
        let partly = format!("{header}1,train,a.nii,,0,1\n");
        let error = read_for(&refuse, &partly, false).unwrap_err().to_string();
        assert!(error.contains("no image for 1 of the views axial, sag; give each"), "{error}");
        assert_eq!(names(&read_for(&pool, &partly, false).unwrap().samples[0]), [None, Some("a.nii".into())]);
        let error = read_for(&pool, &format!("{header}1,train,,,0,1\n"), false).unwrap_err().to_string();
        assert!(error.contains("give at least one"), "{error}");
        let error =
            read_for(&pool, &format!("{header}1,train,c.nii,a.nii,0,1\n"), false).unwrap_err().to_string();
        assert!(
            error.contains("its image of the view sag") && error.contains("c.nii does not exist"),
            "{error}"
        );
        let error =
            read_for(&pool, "id,split,image,x,y\n1,train,a.nii,0,1\n", false).unwrap_err().to_string();
        assert!(error.contains("no column `image:axial`"), "{error}");
        // A scan of another split is told, whichever view it is.
        let leak = format!("{header}1,train,a.nii,,0,1\n2,test,,a.nii,0,1\n");
        assert!(read_for(&pool, &leak, false).unwrap_err().to_string().contains("in split train too"));
    }

    #[test]
    fn rows_are_read_with_unknown_labels_and_foreign_columns() {
        let text = "\u{feff}id,split,y,age,x,image\n1,train,1,50,,a.nii\n2, test ,0,,1,b.nii\n";
        let table = read(text, Loss::Bce, false).unwrap();
        assert_eq!(table.samples[0].targets, [None, Some(true)]);
        assert_eq!(table.samples[1].targets, [Some(true), Some(false)]);
        assert_eq!(table.samples[1].split, Split::Test);
        assert!(table.samples[1].image().ends_with("b.nii"));
        assert_eq!((table.split(Split::Train), table.split(Split::Val)), (vec![0], vec![]));
    }

    #[test]
    fn masks_are_optional() {
        let text = "id,split,image,mask,x,y\n1,train,a.nii,b.nii,0,1\n2,test,b.nii,,1,0\n";
        let table = read(text, Loss::Bce, false).unwrap();
        assert!(table.samples[0].mask.as_ref().unwrap().ends_with("b.nii"));
        assert_eq!(table.samples[1].mask, None);
        let error = read(&text.replace(",b.nii,0", ",c.nii,0"), Loss::Bce, false).unwrap_err().to_string();
        assert!(error.contains("row 2 of") && error.contains("c.nii does not exist"), "{error}");
    }

    #[test]
    fn labels_may_be_missing_for_prediction_only() {
        let text = "id,split,image\n1,test,a.nii\n";
        assert_eq!(read(text, Loss::Bce, true).unwrap().samples[0].targets, [None, None]);
        assert!(read(text, Loss::Bce, false).unwrap_err().to_string().contains("no column `x`"));
    }

    #[test]
    fn each_fault_is_told_with_its_row() {
        for (rows, row, told) in [
            ("1,train,a.nii,0,1\n2,train,c.nii,0,1\n", 3, "c.nii does not exist"),
            ("1,train,,0,1\n", 2, "does not exist"),
            ("1,train,a.nii,2,1\n", 2, "label `x` is `2`"),
            ("1,train,a.nii,0,yes\n", 2, "label `y` is `yes`"),
            ("1,dev,a.nii,0,1\n", 2, "split is `dev`"),
            ("1,val,a.nii,0,1\n\n1,val,b.nii,0,1\n", 4, "`1` is used by an earlier row"),
            (",val,a.nii,0,1\n", 2, "id is empty"),
            ("1,val,a.nii,0,1\r\n1,val,b.nii,0,1\r\n", 3, "`1` is used by an earlier row"),
            ("1,val,a.nii,0\n", 2, "5 fields"),
            ("1,val,a.nii,0,1\n2,test,./a.nii,0,1\n", 3, "by row 2, in split val too"),
        ] {
            let error = read(&format!("id,split,image,x,y\n{rows}"), Loss::Bce, false).unwrap_err();
            let text = error.to_string();
            assert!(error.is_bad_input() && text.contains(told), "{text}");
            assert!(text.contains(&format!("row {row} of")), "{text}");
        }
        assert!(read("", Loss::Bce, false).unwrap_err().to_string().contains("no column `id`"));
        assert!(read("id,split,image,x,y\n", Loss::Bce, false).unwrap_err().to_string().contains("no rows"));
    }

    #[test]
    fn a_patient_is_in_one_split() {
        let with = |rows: &str| read(&format!("id,split,image,x,y,patient\n{rows}"), Loss::Bce, false);
        let error = with("1,train,a.nii,0,1,P7\n2,train,a.nii,0,1,P8\n3,test,b.nii,0,1,P7\n").unwrap_err();
        let expected = "its patient `P7` is in split test and, by row 2, in split train too; \
                        put all rows of a patient into one split";
        assert!(error.is_bad_input() && error.to_string().contains("row 4 of"), "{error}");
        assert!(error.to_string().ends_with(expected), "{error}");
        // Several scans of a patient in one split, and scans of which the patient is not known.
        let table = with("1,train,a.nii,0,1,P7\n2,train,b.nii,0,1,P7\n").unwrap();
        assert_eq!(table.samples[1].patient.as_deref(), Some("P7"));
        assert_eq!(with("1,train,a.nii,0,1,\n2,test,b.nii,0,1,\n").unwrap().samples[0].patient, None);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_scan_of_another_split_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.nii"), "").unwrap();
        std::os::unix::fs::symlink("a.nii", folder.path().join("copy.nii")).unwrap();
        let path = folder.path().join("data.csv");
        std::fs::write(&path, "id,split,image\n1,train,a.nii\n2,val,copy.nii\n").unwrap();
        let error = Table::read(&path, &task(Loss::Bce, ""), true).unwrap_err().to_string();
        assert!(error.contains("copy.nii is in split val and, by row 2, in split train too"), "{error}");
    }

    #[test]
    fn ordinal_labels_rise_grade_by_grade() {
        let with = |x: &str, y: &str| {
            read(&format!("id,split,image,x,y\n1,val,a.nii,{x},{y}\n"), Loss::Ordinal, false)
        };
        for (x, y) in [("0", "0"), ("1", "0"), ("1", "1"), ("", "1"), ("0", ""), ("", "")] {
            assert!(with(x, y).is_ok(), "{x} {y}");
        }
        let error = with("0", "1").unwrap_err().to_string();
        assert!(error.contains("row 2 of") && error.contains("`x` is 0 but `y` is 1"), "{error}");
    }

    #[test]
    fn cross_entropy_wants_exactly_one_positive() {
        let with =
            |x: &str, y: &str| read(&format!("id,split,image,x,y\n1,val,a.nii,{x},{y}\n"), Loss::Ce, false);
        assert!(with("1", "0").is_ok() && with("1", "").is_ok() && with("", "").is_ok());
        assert!(with("1", "1").is_err() && with("0", "0").is_err());
    }
}
