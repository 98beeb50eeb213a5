//! Public data sets, as tiny look-alikes in their makers' layouts, go from `import` to slices that the trainer prepares.

#[path = "../common/mod.rs"]
mod common;
mod cq500;
mod ct_rate;
mod dicom;
mod lidc;
mod luna16;
mod panorama;
mod place;
mod rsna;

use common::train;
use place::Place;

#[test]
fn what_is_no_data_set_or_lacks_its_folder_is_told() {
    let place = Place::new();
    let out = place.out().display().to_string();
    let root = place.root().display().to_string();
    for (args, told) in [
        (vec!["mnist", root.as_str()], "`mnist` is no data set, expected medmnist, rsna-abdominal, panorama"),
        (vec!["ct-rate"], "its folder is missing, expected `import ct-rate ROOT --out DIR`"),
        (vec!["ct-rate", "nowhere"], "it is no folder, expected that of ct-rate"),
        (vec!["cq500", root.as_str()], "it has no reads.csv"),
        (vec!["lidc", root.as_str(), "--labels", "a"], "--labels cannot be used"),
    ] {
        let output = train(&[&["import"], &args[..], &["--out", &out]].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), message.lines().count()), (Some(2), 1), "{message}");
        assert!(message.contains(told), "{message}");
    }
    assert!(!place.out().exists());
}
