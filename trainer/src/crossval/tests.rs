use std::collections::BTreeMap;

use super::*;
use crate::data::{Sample, Split, column};
use crate::evaluate::Predictions;
use crate::fit::tests::Bench;
use crate::run::{Run, file};

const P: Option<bool> = Some(true);
const N: Option<bool> = Some(false);

/// How often each fold holds `wanted` in its label `label`.
fn held(
    folds: &[usize],
    targets: &[&[Option<bool>]],
    label: usize,
    wanted: bool,
    count: usize,
) -> Vec<usize> {
    let mut held = vec![0; count];
    for (&fold, row) in folds.iter().zip(targets) {
        held[fold] += usize::from(row[label] == Some(wanted));
    }
    held
}

fn differ(counts: &[usize]) -> usize {
    counts.iter().max().unwrap() - counts.iter().min().unwrap()
}

#[test]
fn folds_hold_the_same_share_of_each_class_and_are_the_same_again() {
    // 13 positives among 60 rows, in no order.
    let targets: Vec<[Option<bool>; 1]> = (0..60).map(|i| [Some(i * 7 % 60 < 13)]).collect();
    let targets: Vec<&[Option<bool>]> = targets.iter().map(<[_; 1]>::as_slice).collect();
    let groups: Vec<usize> = (0..60).collect();
    let folds = assign(&groups, &targets, 5, 0);
    assert_eq!(folds, assign(&groups, &targets, 5, 0));
    assert_ne!(folds, assign(&groups, &targets, 5, 1));
    let (positives, negatives) = (held(&folds, &targets, 0, true, 5), held(&folds, &targets, 0, false, 5));
    assert_eq!(positives.iter().sum::<usize>(), 13);
    assert!(differ(&positives) <= 1 && differ(&negatives) <= 1, "{positives:?} {negatives:?}");
    let sizes: Vec<usize> = positives.iter().zip(&negatives).map(|(p, n)| p + n).collect();
    assert_eq!(sizes, [12; 5]);
}

#[test]
fn groups_stay_together_and_rare_labels_are_spread() {
    // Twenty patients with three rows each; the second label holds for five patients, and is unknown for some.
    let targets: Vec<[Option<bool>; 2]> = (0..60)
        .map(|row| {
            let patient = row / 3;
            [Some(row % 2 == 0), if patient == 7 { None } else { Some(patient % 4 == 1) }]
        })
        .collect();
    let targets: Vec<&[Option<bool>]> = targets.iter().map(<[_; 2]>::as_slice).collect();
    let groups: Vec<usize> = (0..60).map(|row| row / 3).collect();
    let folds = assign(&groups, &targets, 5, 3);
    for rows in folds.chunks_exact(3) {
        assert!(rows[0] == rows[1] && rows[1] == rows[2]);
    }
    assert_eq!(held(&folds, &targets, 1, true, 5), [3; 5]);
    let sizes: Vec<usize> = (0..5).map(|fold| folds.iter().filter(|f| **f == fold).count()).collect();
    assert_eq!(sizes, [12; 5]);
    assert!(differ(&held(&folds, &targets, 0, true, 5)) <= 2);
}

/// Rows of these patients and splits, positive and negative in turn.
fn table(rows: &[(&str, Split)]) -> Table {
    let sample = |(i, &(patient, split)): (usize, &(&str, Split))| Sample {
        id: format!("s{i}"),
        patient: (!patient.is_empty()).then(|| patient.into()),
        split,
        images: vec![Some(format!("{i}.nii").into())],
        mask: None,
        targets: vec![if i % 2 == 0 { P } else { N }],
        row: i as u64 + 2,
    };
    let samples = rows.iter().enumerate().map(sample).collect();
    Table { path: "data.csv".into(), sha256: String::new(), samples }
}

#[test]
fn test_rows_are_left_alone_and_without_them_another_fold_chooses() {
    let patients = ["a", "a", "b", "b", "", "", "c", "c", "t"];
    let with: Vec<(&str, Split)> = patients
        .iter()
        .enumerate()
        .map(|(i, &p)| match (p, i) {
            ("t", _) => (p, Split::Test),
            (_, 0..3) => (p, Split::Val),
            _ => (p, Split::Train),
        })
        .collect();
    let rows = table(&with);
    let folds = Folds::of(&rows, 2, 0).unwrap();
    assert_eq!(folds.of[8], None);
    assert!(folds.of[0] == folds.of[1] && folds.of[2] == folds.of[3] && folds.of[6] == folds.of[7]);
    for fold in 0..2 {
        for row in 0..8 {
            let expected = if folds.of[row] == Some(fold) { Split::Val } else { Split::Train };
            assert_eq!(folds.split(row, fold), expected);
        }
        assert_eq!(folds.split(8, fold), Split::Test);
    }
    let csv = String::from_utf8(folds.csv(&rows, 1).unwrap()).unwrap();
    assert!(csv.starts_with("id,split,fold\n") && csv.ends_with("s8,test,\n"), "{csv}");

    let mut rows = table(&with[..8]);
    let apart = |rows: &Table| {
        (0..9).any(|seed| {
            let folds = Folds::of(rows, 3, seed).unwrap();
            folds.of[4] != folds.of[5]
        })
    };
    assert!(apart(&rows));
    let folds = Folds::of(&rows, 4, 0).unwrap();
    for row in 0..8 {
        let part = folds.of[row].unwrap();
        let splits: Vec<Split> = (0..4).map(|fold| folds.split(row, (part + fold) % 4)).collect();
        assert_eq!(splits, [Split::Test, Split::Train, Split::Train, Split::Val]);
    }
    let told = |count| Folds::of(&rows, count, 0).unwrap_err().to_string();
    assert!(told(2).contains("expected at least 3"), "{}", told(2));
    assert!(told(6).contains("5 patients, expected at least one for each of 6 folds"), "{}", told(6));
    // Two rows of one scan are one.
    rows.samples[5].images = rows.samples[4].images.clone();
    assert!(!apart(&rows));
}

#[test]
fn folds_are_ordinary_runs_and_out_of_fold_predictions_are_theirs() {
    let bench = Bench::new();
    let mut options = bench.options("cv");
    options.task.train.epochs = 1;
    let plan = Plan { folds: Some(2), only: vec![1], seeds: vec![7, 8] };
    // One fold, as a job of its own would; then the other one, which goes on from there.
    let first = run(&options, &plan).unwrap();
    assert_eq!(first.runs.iter().map(|r| (r.fold, r.seed)).collect::<Vec<_>>(), [(Some(1), 7), (Some(1), 8)]);
    let all = run(&options, &Plan { only: vec![], ..plan.clone() }).unwrap();
    assert_eq!(all.runs.len(), 4);
    assert_eq!(all.runs[0].folder, Path::new("fold-0/seed-7"));
    let spread = all.val_auroc.unwrap();
    let mean = all.runs.iter().map(|r| r.val_auroc.unwrap()).sum::<f64>() / 4.0;
    assert!(spread.runs == 4 && (spread.mean - mean).abs() < 1e-12);

    // A single fit with the same split and seed is the same fit.
    let mut single = options.clone();
    (single.out, single.task.train.seed) = (bench.path("single"), 7);
    single.split = Some(bench.path("cv/fold-1/split.csv"));
    fit(&single).unwrap();
    let content = |folder: &str| Run::open(&bench.path(folder)).unwrap().best.content();
    assert_eq!(content("single"), content("cv/fold-1/seed-7"));

    // Each train and val row was held out once; its logit is the mean over the two seeds of its fold.
    let read = |folder: &str| Predictions::read(&bench.path(folder).join(file::PREDICTIONS)).unwrap();
    let pooled = read("cv");
    let by_id = |of: &Predictions| -> BTreeMap<String, f64> {
        of.cases.iter().map(|case| (case.id.clone(), case.logits[0])).collect()
    };
    let pooled_logits = by_id(&pooled);
    assert_eq!(pooled_logits.len(), 20);
    let temperature = |folder: &str| Run::open(&bench.path(folder)).unwrap().temperature().unwrap();
    let part = column(&bench.path("cv/fold-0/split.csv"), "fold").unwrap().unwrap();
    for (id, logit) in &pooled_logits {
        let folds = if part[id].is_empty() { vec!["0", "1"] } else { vec![part[id].as_str()] };
        let folders: Vec<String> =
            folds.iter().flat_map(|f| [7, 8].map(|seed| format!("cv/fold-{f}/seed-{seed}"))).collect();
        let scaled = folders.iter().map(|folder| by_id(&read(folder))[id] / temperature(folder));
        let expected = scaled.sum::<f64>() / folders.len() as f64;
        assert!((logit - expected).abs() < 1e-9, "{id} {logit} {expected}");
    }
    let val = pooled.cases.iter().filter(|case| case.split == "val").count();
    assert_eq!((val, pooled.cases.len()), (16, 20));
    assert_eq!(
        all.pooled.iter().map(|e| (e.split.as_str(), e.cases)).collect::<Vec<_>>(),
        [("val", 16), ("test", 4)]
    );

    // Other folds do not go into the same folders.
    let error = run(&options, &Plan { folds: Some(4), ..plan.clone() }).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("split of other folds"), "{error}");
    let error = run(&options, &Plan { only: vec![2], ..plan.clone() }).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("expected 0 to 1"), "{error}");
    let error = run(&options, &Plan { seeds: vec![1, 1], ..plan }).unwrap_err();
    assert!(error.to_string().contains("--seeds"), "{error}");
}

#[test]
fn seeds_alone_share_the_tables_split() {
    let bench = Bench::new();
    let mut options = bench.options("seeds");
    options.task.train.epochs = 1;
    let made = run(&options, &Plan { seeds: vec![0, 5], ..Plan::default() }).unwrap();
    let names: Vec<&Path> = made.runs.iter().map(|r| r.folder.as_path()).collect();
    assert_eq!(names, [Path::new("seed-0"), Path::new("seed-5")]);
    let content = |folder: &str| Run::open(&bench.path(folder)).unwrap().best.content();
    assert_ne!(content("seeds/seed-0")["lora.patch.A"], content("seeds/seed-5")["lora.patch.A"]);
    let Err(error) = Run::open(&bench.path("seeds")) else { panic!("no run folder") };
    assert!(
        error.is_bad_input()
            && error.to_string().contains("such as")
            && error.to_string().ends_with("seed-0")
    );
    let error = overview(&bench.path("seeds/seed-0")).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("no finished run"), "{error}");
}
