//! The VLM3D challenge's submission for multi-abnormality classification of chest CT.
//!
//! The form is that of the organisers' example and evaluation containers (<https://github.com/forithmus/VLM3D-Dockers>,
//! `ct_challenges/abnclass_example_docker` and `abnclass_evaluation`): `results.json` with an entry a volume, named as its file without
//! extension, and a probability for each of 18 findings. Its [metrics](crate::metrics::Vlm3d) call a finding at 0.5.

use serde::{Serialize, Serializer};

use crate::Error;
use crate::data::Table;
use crate::predict::Row;
use crate::task::Task;

/// The findings, in the challenge's order.
pub const LABELS: [&str; 18] = [
    "Medical material",
    "Arterial wall calcification",
    "Cardiomegaly",
    "Pericardial effusion",
    "Coronary artery wall calcification",
    "Hiatal hernia",
    "Lymphadenopathy",
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Pleural effusion",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
];

/// The file as a whole.
#[derive(Serialize)]
struct Submission {
    name: &'static str,
    r#type: &'static str,
    version: Version,
    predictions: Vec<Prediction>,
}

#[derive(Serialize)]
struct Version {
    major: u32,
    minor: u32,
}

/// One volume.
#[derive(Serialize)]
struct Prediction {
    input_image_name: String,
    probabilities: Probabilities,
}

/// One a finding, in the order of [`LABELS`].
struct Probabilities([f64; 18]);

impl Serialize for Probabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(LABELS.iter().zip(&self.0))
    }
}

/// Where each of [`LABELS`] stands among the task's labels, whatever their order.
///
/// # Errors
/// A label that the task lacks.
pub fn columns(task: &Task) -> Result<[usize; 18], Error> {
    let mut columns = [0; 18];
    for (column, label) in columns.iter_mut().zip(LABELS) {
        *column = task.labels.iter().position(|found| found == label).ok_or_else(|| Error::Flag {
            flag: "--vlm3d",
            problem: format!(
                "the task has no label `{label}`, expected all 18 of the challenge, as `scanside-train import ct-rate` writes them"
            ),
        })?;
    }
    Ok(columns)
}

/// `results.json` with the probabilities, after `temperature`, of each of `rows`; a volume's name is its id in the table, without
/// `.nii.gz`, `.nii` or `.mha`.
///
/// # Errors
/// As [`columns`].
pub fn submission(table: &Table, task: &Task, rows: &[Row], temperature: f64) -> Result<Vec<u8>, Error> {
    let columns = columns(task)?;
    let prediction = |row: &Row| {
        let probabilities = task.activation().probabilities(&row.logits, temperature);
        Prediction {
            input_image_name: bare(&table.samples[row.index].id).to_owned(),
            probabilities: Probabilities(columns.map(|column| probabilities[column])),
        }
    };
    let submission = Submission {
        name: "Generated probabilities",
        r#type: "Abnormality Classification",
        version: Version { major: 1, minor: 0 },
        predictions: rows.iter().map(prediction).collect(),
    };
    let mut text = serde_json::to_vec_pretty(&submission)
        .map_err(|e| Error::io("results.json")(std::io::Error::other(e)))?;
    text.push(b'\n');
    Ok(text)
}

fn bare(id: &str) -> &str {
    [".nii.gz", ".nii", ".mha"].iter().find_map(|end| id.strip_suffix(end)).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(labels: &[&str]) -> Task {
        let recipe = "{ plane = 'axial', size = [28, 28], intensity = { kind = 'z-score' } }";
        toml::from_str(&format!("name = 't'\nversion = '1.0.0'\nlabels = {labels:?}\nrecipe = {recipe}\n"))
            .unwrap()
    }

    #[test]
    fn probabilities_are_in_the_challenges_order_whatever_the_tasks() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.nii"), "").unwrap();
        let path = folder.path().join("data.csv");
        std::fs::write(&path, "id,split,image\nvalid_1_a_1.nii.gz,test,a.nii\n").unwrap();
        let mut labels: Vec<&str> = LABELS.into_iter().rev().collect();
        labels.insert(3, "Another");
        let task = task(&labels);
        let table = Table::read(&path, &task, true).unwrap();
        let logits: Vec<f32> =
            labels.iter().map(|label| LABELS.iter().position(|l| l == label).unwrap_or(99) as f32).collect();
        let rows = [Row { index: 0, logits, located: None }];
        let text = String::from_utf8(submission(&table, &task, &rows, 1.0).unwrap()).unwrap();
        let found: Vec<&str> = text.lines().filter_map(|line| line.trim().split(": ").next()).collect();
        let expected: Vec<String> = LABELS.map(|label| format!("\"{label}\"")).to_vec();
        let first = found.iter().position(|key| *key == expected[0]).unwrap();
        assert_eq!(found[first..first + 18], expected);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let volume = &json["predictions"][0];
        assert_eq!(
            (volume["input_image_name"].as_str(), json["version"]["major"].as_u64()),
            (Some("valid_1_a_1"), Some(1))
        );
        assert_eq!(volume["probabilities"]["Medical material"].as_f64(), Some(0.5));
        assert!(volume["probabilities"]["Bronchiectasis"].as_f64().unwrap() > 0.999);
    }

    #[test]
    fn a_label_that_is_not_there_is_told() {
        let error = columns(&task(&LABELS[..17])).unwrap_err();
        assert!(error.is_bad_input());
        assert!(
            error.to_string().contains("the task has no label `Interlobular septal thickening`"),
            "{error}"
        );
    }
}
