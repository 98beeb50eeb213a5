use std::path::Path;

use trainer::data::Split;
use trainer::task::Task;
use trainer::vlm3d;

use crate::common::succeed;
use crate::place::{Place, backbone};

#[test]
fn ct_rate_is_fitted_and_predicted_into_a_submission() {
    let place = Place::new();
    let csv = |names: &[String]| {
        let header = vlm3d::LABELS.join(",");
        let flags = |n: usize| (0..18).map(|l| ((n + l) % 2).to_string()).collect::<Vec<_>>().join(",");
        let rows: Vec<String> =
            names.iter().enumerate().map(|(n, name)| format!("{name},{}\n", flags(n))).collect();
        format!("VolumeName,{header}\n{}", rows.concat())
    };
    let mut train_names = Vec::new();
    for n in 1..=12 {
        train_names.push(format!("train_{n}_a_1.nii.gz"));
    }
    train_names.push("train_1_b_1.nii.gz".into());
    let valid_names: Vec<String> = (1..=2).map(|n| format!("valid_{n}_a_2.nii.gz")).collect();
    for name in train_names.iter().chain(&valid_names) {
        let parts: Vec<&str> = name.split('_').collect();
        let (part, patient, scan) = (parts[0], parts[..2].join("_"), parts[..3].join("_"));
        let file = format!("dataset/{part}_fixed/{patient}/{scan}/{name}");
        place.nifti(&file, [6, 6, 3], |i| (i * 20) as f32 - 1000.0);
    }
    train_names.push("train_99_a_1.nii.gz".into());
    place.text("dataset/multi_abnormality_labels/train_predicted_labels.csv", &csv(&train_names));
    place.text("dataset/multi_abnormality_labels/valid_predicted_labels.csv", &csv(&valid_names));
    let (_, warned) = place.import("ct-rate");
    let missing = "volumes of the label tables that are not there: 1 left out, the first train_99_a_1.nii.gz";
    assert!(warned.contains(missing), "{warned}");
    let (task, table, slices) = place.task("");
    assert_eq!((task.labels.as_slice(), slices.count), (&vlm3d::LABELS.map(String::from)[..], 3));
    assert_eq!(table.samples.len(), 15);
    let of = |id: &str| table.samples.iter().find(|sample| sample.id == id).unwrap();
    assert_eq!(
        (of("valid_2_a_2").split, of("valid_2_a_2").patient.as_deref()),
        (Split::Test, Some("valid_2"))
    );
    assert_eq!(
        (of("train_1_b_1").split, of("train_1_a_1").split),
        (of("train_1_a_1").split, of("train_1_b_1").split)
    );
    assert!(!table.split(Split::Val).is_empty() && table.split(Split::Test).len() == 2);
    assert_eq!((of("train_2_a_1").targets[0], of("train_2_a_1").targets[1]), (Some(true), Some(false)));

    // Other labels' order in the task, to see that the submission has the challenge's.
    let path = |name: &str| place.0.path().join(name).display().to_string();
    let text = std::fs::read_to_string(place.out().join("task.toml")).unwrap();
    let mut small: Task = toml::from_str(&text).unwrap();
    small.labels.reverse();
    small.recipe.size = [28, 28];
    small.train.epochs = 1;
    std::fs::write(path("task.toml"), toml::to_string(&small).unwrap()).unwrap();
    let (task, data, run, backbone) = (path("task.toml"), path("out/data.csv"), path("run"), backbone());
    succeed(&[
        "fit",
        "--task",
        &task,
        "--data",
        &data,
        "--backbone",
        &backbone,
        "--out",
        &run,
        "--threads",
        "1",
    ]);
    let (csv, json) = (path("p.csv"), path("results.json"));
    succeed(&["predict", "--run", &run, "--data", &data, "--threads", "1", "--out", &csv, "--vlm3d", &json]);
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(json["type"], "Abnormality Classification");
    let volumes = json["predictions"].as_array().unwrap();
    assert_eq!((volumes.len(), volumes[0]["input_image_name"].as_str()), (15, Some("train_1_a_1")));
    let cells = trainer::data::column(Path::new(&csv), "prob:Emphysema").unwrap().unwrap();
    let told = volumes[0]["probabilities"]["Emphysema"].as_f64().unwrap();
    assert!((told - cells["train_1_a_1"].parse::<f64>().unwrap()).abs() < 1e-9);

    // The first release's files are taken with a warning.
    for part in ["train", "valid"] {
        let folder = |name: &str| place.root().join("dataset").join(name);
        std::fs::rename(folder(&format!("{part}_fixed")), folder(part)).unwrap();
    }
    assert!(place.import("ct-rate").1.contains("whose headers lack HU and spacing; take valid_fixed"));
    place.text(
        "dataset/multi_abnormality_labels/valid_predicted_labels.csv",
        "VolumeName,Emphysema\nvalid_1_a_1.nii.gz,1\n",
    );
    std::fs::remove_dir_all(place.out()).unwrap();
    assert!(
        place
            .refused("ct-rate")
            .contains("valid_predicted_labels.csv cannot be imported: it has no column `Medical material`")
    );
}
