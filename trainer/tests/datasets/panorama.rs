use runtime::volume::{ReadOptions, read};
use trainer::data::Cache;
use trainer::task::{Pixel, Task};

use crate::place::{Place, targets};

#[test]
fn panorama_takes_its_labels_and_lesions_from_the_masks() {
    let place = Place::new();
    let dims = [6, 6, 4];
    for (batch, study) in [(1, "100000_00001"), (2, "100047_00001"), (2, "100047_00002"), (2, "100050_00001")]
    {
        place.nifti(&format!("batch_{batch}/{study}_0000.nii.gz"), dims, |i| i as f32);
    }
    let labels = "panorama_labels-main";
    let healthy = |i: usize| [0.0, 2.0, 3.0, 4.0, 5.0, 6.0][i % 6];
    place.nifti(&format!("{labels}/automatic_labels/100000_00001.nii.gz"), dims, healthy);
    place.nifti(&format!("{labels}/automatic_labels/100047_00001.nii.gz"), dims, healthy);
    // A manual one goes before.
    let ill = |i: usize| if i.is_multiple_of(6) { 1.0 } else { 4.0 };
    place.nifti(&format!("{labels}/manual_labels/100047_00001.nii.gz"), dims, ill);
    place.nifti(&format!("{labels}/automatic_labels/100047_00002.nii.gz"), dims, ill);
    place.nifti(&format!("{labels}/automatic_labels/100099_00001.nii.gz"), dims, ill);
    let (told, warned) = place.import("panorama");
    assert!(told.contains("3 volumes; labels PDAC\n"), "{told}");
    assert!(warned.contains("masks without a scan: 1 left out, the first 100099_00001"), "{warned}");
    assert!(warned.contains("scans without a mask: 1 left out, the first 100050_00001"), "{warned}");
    let (_, table, slices) = place.task("");
    assert_eq!(slices.count, 4);
    assert_eq!(targets(&table), [("100000_00001", false), ("100047_00001", true), ("100047_00002", true)]);
    assert_eq!(table.samples[2].patient.as_deref(), Some("100047"));
    assert_eq!(place.column("data.csv", "annotation")["100047_00001"], "manual_labels");
    let mask = read(table.samples[1].mask.as_deref().unwrap(), &ReadOptions::default()).unwrap().remove(0);
    let lesion: Vec<usize> = (0..mask.voxels.len()).filter(|&i| mask.voxels[i] > 0.5).collect();
    assert_eq!(lesion, (0..mask.voxels.len()).step_by(6).collect::<Vec<_>>());
    // With pixel supervision the mask comes with the slices.
    let mut task = Task::read(&place.out().join("task.toml")).unwrap();
    task.train.pixel = Some(Pixel::default());
    let study = Cache::new(&table, &task, 0).get(1).unwrap().unwrap();
    assert!(study.mask().unwrap().contains(&1));

    std::fs::remove_dir_all(place.root().join(labels)).unwrap();
    std::fs::remove_dir_all(place.out()).unwrap();
    assert!(place.refused("panorama").contains("expected the repository panorama_labels in it"));
}
