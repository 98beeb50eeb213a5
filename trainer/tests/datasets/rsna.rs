use trainer::data::Split;

use crate::common::succeed;
use crate::dicom::Series;
use crate::place::{Place, backbone, targets};

#[test]
fn rsna_abdominal_becomes_a_suite_of_organs() {
    let place = Place::new();
    let header = "patient_id,bowel_healthy,bowel_injury,extravasation_healthy,extravasation_injury,kidney_healthy,kidney_low,kidney_high,\
                  liver_healthy,liver_low,liver_high,spleen_healthy,spleen_low,spleen_high,any_injury\n";
    let labels = "10004,1,0,0,1,0,1,0,1,0,0,0,0,1,1\n10005,0,1,1,0,1,0,0,0,1,0,1,0,0,1\n10006,1,0,1,0,1,0,0,1,0,0,1,0,0,0\n";
    place.text("train.csv", &format!("{header}{labels}"));
    let series = "patient_id,series_id,aortic_hu,incomplete_organ\n10004,21057,146.0,0\n10004,51033,454.75,1\n10005,18667,187.0,0\n\
                  10006,7,1.0,0\n";
    place.text("train_series_meta.csv", series);
    for (patient, series) in [(10004, 21057), (10004, 51033), (10005, 18667)] {
        let folder = place.root().join(format!("train_images/{patient}/{series}"));
        let value = |i: usize, j: usize, k: usize| (10 * (i + j + k)) as i16;
        let scan = Series {
            uid: &format!("1.2.{series}"),
            dims: [8, 8, 3],
            spacing: [1.0, 1.0, 5.0],
            tilt: 0.0,
            value: &value,
        };
        scan.write(&folder, |k| format!("{}.dcm", 1000 - k));
    }
    let (told, warned) = place.import("rsna-abdominal");
    assert!(told.contains("bowel: 3 volumes; labels injury\n"), "{told}");
    assert!(warned.contains(
        "series of train_series_meta.csv that are not in train_images: 1 left out, the first 10006/7"
    ));
    assert!(
        warned.contains("patients without a series that is there: 1 left out, the first 10006"),
        "{warned}"
    );
    let expected = [
        ("bowel", [false, true]),
        ("extravasation", [true, false]),
        ("kidney", [true, false]),
        ("liver", [false, true]),
        ("spleen", [true, false]),
    ];
    let mut splits = Vec::new();
    for (organ, [first, second]) in expected {
        let (task, table, slices) = place.task(organ);
        assert_eq!((task.name, slices.count), (format!("abdominal-trauma-{organ}"), 3));
        assert_eq!(
            targets(&table),
            [("10004-21057", first), ("10004-51033", first), ("10005-18667", second)]
        );
        assert_eq!(table.samples[1].patient.as_deref(), Some("10004"));
        splits.push(table.samples.iter().map(|sample| sample.split).collect::<Vec<Split>>());
    }
    assert!(
        splits.iter().all(|split| *split == splits[0] && split[0] == split[1]),
        "a patient is in one split"
    );
    assert_eq!(place.column("kidney/data.csv", "aortic_hu")["10004-51033"], "454.75");
    // The suite is taken as it is.
    let (suite, out) =
        (place.out().display().to_string(), place.0.path().join("compare").display().to_string());
    let backbone = backbone();
    let cells = [
        "compare",
        "--suite",
        &suite,
        "--backbone",
        &backbone,
        "--out",
        &out,
        "--list",
        "--methods",
        "anymc3d",
    ];
    assert_eq!(succeed(&cells).lines().count(), 5);

    place.text("train.csv", &header.replace("liver_low", "liver_lo"));
    assert!(
        place
            .refused("rsna-abdominal")
            .contains("train.csv cannot be imported: it has no column `liver_low`")
    );
    place.text("train.csv", &format!("{header}{}", labels.replace("10004,1,0", "10004,1,2")));
    assert!(place.refused("rsna-abdominal").contains("its `bowel_injury` in line 2 is `2`, expected 0 or 1"));
    place.text("train.csv", &format!("{header}{labels}"));
    std::fs::remove_dir_all(place.root().join("train_images")).unwrap();
    assert!(place.refused("rsna-abdominal").contains("it has no train_images"));
    std::fs::create_dir(place.root().join("train_images")).unwrap();
    assert!(place.refused("rsna-abdominal").contains("not one of its scans can be taken (series of train_series_meta.csv that are not in train_images: 4 left out"));
}
