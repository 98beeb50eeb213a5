use std::path::Path;

use super::*;

const HEADER: &str = "id,split,lesion,bleed,logit:lesion,prob:lesion,logit:bleed,prob:bleed\n";

fn parse(rows: &str) -> Result<Predictions, EvaluateError> {
    Predictions::parse("p.csv", format!("{HEADER}{rows}").as_bytes())
}

fn message(csv: &str) -> String {
    let error = Predictions::parse("p.csv", csv.as_bytes()).unwrap_err();
    assert!(error.is_bad_input());
    error.to_string()
}

#[test]
fn labels_with_one_class_are_skipped_and_unknown_truth_counts_nowhere() {
    let predictions = parse(
        "a,val,0,0,-1,0.3,0,0.5\nb,val,1,0,1,0.7,0,0.5\n\
         c,test,0,0,-2,0.1,0,0.5\nd,test,1,0,2,0.9,0,0.5\ne,test,1,0,-1,0.2,0,0.5\nf,test,,0,3,0.95,0,0.5\n",
    )
    .unwrap();
    let found = evaluate(&predictions, "test").unwrap();
    let [lesion, bleed] = &found.labels[..] else { panic!("two labels") };
    assert_eq!((lesion.positives, lesion.negatives, lesion.unknown), (2, 1, 1));
    assert_eq!(lesion.auroc.as_ref().map(|a| a.value), Some(1.0));
    // The threshold of the val cases, 0.5, misses one of two.
    let point = &lesion.operating_points[0];
    assert_eq!(point.rule, "youden on validation");
    assert!((point.threshold - 0.5).abs() < 1e-12 && (point.sensitivity - 0.5).abs() < 1e-12);
    assert!(bleed.auroc.is_none() && bleed.average_precision.is_none() && bleed.operating_points.is_empty());
    assert_eq!(found.macro_auroc, Some(1.0));
    let table = found.to_string();
    assert!(table.contains("lesion        2/1    1.000 (0."), "{table}");
    assert!(table.contains("bleed         0/4                      –                      –"), "{table}");
    // Nothing is chosen on the split that it is measured on.
    assert!(evaluate(&predictions, "val").unwrap().labels[0].operating_points.is_empty());
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!(json["labels"][0]["auroc"]["interval"], "newcombe");
    // One of two positives: Wilson's interval is (p + z²/2n ± …) / (1 + z²/n).
    assert!((point.sensitivity_ci[0] - 0.094_531).abs() < 1e-6, "{:?}", point.sensitivity_ci);
    assert_eq!(lesion.sensitivity_at.iter().map(|at| at.sensitivity).collect::<Vec<_>>(), [1.0; 3]);
    assert!(table.contains("lesion  youden on validation"), "{table}");
    assert_eq!(json["labels"][1]["auroc"], serde_json::Value::Null);
}

#[test]
fn what_is_wrong_is_said_in_one_sentence() {
    assert_eq!(
        message("id,split,lesion,prob:lesion\n"),
        "p.csv has no column \"logit:lesion\", which predictions need; it has: id, split, lesion, prob:lesion"
    );
    assert!(message("id,split,lesion\n").contains("no column \"prob:LABEL\""));
    let head = "id,split,x,logit:x,prob:x\n";
    assert_eq!(
        message(&format!("{head}a,test,2,0,0.5\n")),
        "line 2 of p.csv has \"2\" in column \"x\", where 0, 1 or nothing is expected"
    );
    assert!(message(&format!("{head}a,test,1,none,0.5\n")).contains("where a finite number is"));
    assert!(message(&format!("{head}a,test,1,0,1.5\n")).contains("a number from 0 to 1"));
    assert!(message(&format!("{head}a,test,1,0,0.5\na,test,1,0,0.5\n")).contains("a second time"));
    assert!(message(&format!("{head}a,test,1\n")).contains("not a sound CSV table"));
    let missing = Predictions::read(Path::new("no such file.csv")).unwrap_err();
    assert!(missing.is_bad_input());
    let one = parse("a,test,1,0,0,0.5,0,0.5\n").unwrap();
    assert_eq!(
        evaluate(&one, "test").unwrap_err().to_string(),
        "no label of p.csv has both a positive and a negative case in the split \"test\" (lesion: 1 and 0; \
         bleed: 0 and 1), so there is nothing to tell apart; evaluate a split that has both"
    );
    assert_eq!(
        evaluate(&one, "val").unwrap_err().to_string(),
        "p.csv has no case of the split \"val\"; it has: test"
    );
}
