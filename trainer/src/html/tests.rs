use super::*;
use crate::evaluate::OperatingPoint;
use crate::metrics::Confusion;

fn report() -> Report {
    Report {
        title: "A <b> & \"c\"".into(),
        about: "About".into(),
        epochs: (1..=3)
            .map(|epoch| Epoch {
                epoch,
                train_loss: 0.7 / epoch as f64,
                val_loss: Some(0.8),
                val_auroc: Some(0.5 + 0.1 * epoch as f64),
                best: epoch == 3,
            })
            .collect(),
        labels: vec![
            LabelScores {
                label: "lesion".into(),
                probabilities: vec![0.1, 0.8, 0.4, 0.9, 0.5, 0.3],
                truth: vec![false, true, false, true, false, true],
            },
            LabelScores { label: "none".into(), probabilities: vec![0.1], truth: vec![false] },
        ],
        figures: Figures {
            probe_auroc: Some(0.7),
            parity_max_abs: Some(2.5e-6),
            parameters: Some(229_729),
            plugin_bytes: Some(1_050_000),
            ..Figures::default()
        },
        pictures: vec![Picture { png: b"not really a png".to_vec(), caption: "Key slices".into() }],
        operating: vec![Operating {
            label: "lesion".into(),
            point: OperatingPoint {
                threshold: 0.25,
                rule: "youden on validation".into(),
                sensitivity: 1.0,
                sensitivity_ci: [0.4385, 1.0],
                specificity: 2.0 / 3.0,
                specificity_ci: [0.2077, 0.9385],
                confusion: Confusion {
                    true_positives: 3,
                    false_positives: 1,
                    true_negatives: 2,
                    false_negatives: 0,
                },
            },
        }],
        wrong: vec![Wrong {
            id: "v<7>".into(),
            loss: 1.609,
            labels: vec![("lesion".into(), true, 0.2)],
            png: Some(b"f".to_vec()),
        }],
    }
}

#[test]
fn the_page_is_self_contained_and_says_what_it_is() {
    let page = report().render();
    for external in ["http", "src=\"/", "<script", "<link", "@import", "url("] {
        assert!(!page.contains(external), "{external}");
    }
    assert!(page.contains("For research use only"));
    assert!(page.contains("<h1>A &lt;b&gt; &amp; &quot;c&quot;</h1>"));
    assert!(page.contains("src=\"data:image/png;base64,bm90IHJlYWxseSBhIHBuZw==\""));
    assert!(page.contains("<td>test AUROC of the frozen linear probe</td><td>0.700</td>"));
    assert!(
        page.contains("<td>2.5e-6</td>") && page.contains("<td>229,729</td>") && page.contains("1.05 MB")
    );
    // Seven of nine pairs are in order.
    assert!(page.contains("<td>test AUROC (95 % CI), lesion</td><td>0.778 ("));
    assert!(!page.contains("NaN") && !page.contains("inf"));
    assert!(page.contains("<td>0.2500</td><td>1.000 (0.439–1.000)</td><td>0.667 (0.208–0.939)</td><td>3</td><td>0</td><td>2</td><td>1</td>"));
    assert!(page.contains(
        "v&lt;7&gt;: lesion is present, predicted 0.200 (loss 1.61)\" src=\"data:image/png;base64,Zg==\""
    ));
}

#[test]
fn every_chart_that_the_data_allow_is_there() {
    let page = report().render();
    assert_eq!(
        page.matches("<svg").count(),
        2 + 3 + 1,
        "training, lesion, and calibration of the one-class label"
    );
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    assert_eq!(Report::default().render().matches("<svg").count(), 0);
}

#[test]
fn the_page_is_written_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    report().write(&path).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), report().render());
    assert!(report().write(&folder.path().join("none/report.html")).is_err());
}
