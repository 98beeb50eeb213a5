use runtime::volume::{ReadOptions, read};

use crate::place::Place;

#[test]
fn luna16s_candidates_become_crops() {
    let place = Place::new();
    let uid = |subset: usize| format!("1.3.6.1.4.1.14519.5.2.1.6279.6001.{subset}");
    for subset in [0, 8, 9] {
        let header = format!(
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n\
             TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = -40 -40 -20\nCenterOfRotation = 0 0 0\nAnatomicalOrientation = RAI\n\
             ElementSpacing = 10 10 10\nDimSize = 8 8 4\nElementType = MET_SHORT\nElementDataFile = {}.raw\n",
            uid(subset)
        );
        place.text(&format!("subset{subset}/{}.mhd", uid(subset)), &header);
        let voxels: Vec<u8> = (0..8 * 8 * 4i16).flat_map(i16::to_le_bytes).collect();
        std::fs::write(place.root().join(format!("subset{subset}/{}.raw", uid(subset))), voxels).unwrap();
    }
    let mut csv = String::from("seriesuid,coordX,coordY,coordZ,class\n");
    for n in 0..15 {
        csv += &format!("{},{},0,0,0\n", uid(0), 2 * n - 14);
    }
    // Voxel (3, 5, 1).
    csv +=
        &format!("{0},-10,10,-10,1\n{1},0,0,0,1\n{2},0,0,0,0\nelsewhere,0,0,0,0\n", uid(0), uid(8), uid(9));
    place.text("candidates_V2.csv", &csv);
    place.text("annotations.csv", "seriesuid,coordX,coordY,coordZ,diameter_mm\n");
    let (told, warned) = place.import("luna16");
    assert!(told.contains(
        "train: 11 volumes; positive nodule 1\n  val: 1 volumes; positive nodule 1\n  test: 1 volumes"
    ));
    assert!(
        warned
            .contains("scans with candidates that are in no subset folder: 1 left out, the first elsewhere")
    );
    let (_, table, slices) = place.task("");
    assert_eq!(slices.count, 5, "50 mm of slices 10 mm apart");
    let nodule = table.samples.iter().position(|sample| sample.id == format!("{}-16", uid(0))).unwrap();
    assert_eq!(table.samples[nodule].targets, [Some(true)]);
    let crop = read(table.samples[nodule].image(), &ReadOptions::default()).unwrap().remove(0);
    // The middle is the candidate's voxel; two slices below the scan's first there is air.
    assert_eq!((crop.dims, crop.voxels[2 + 5 * (2 + 5 * 2)]), ([5, 5, 5], (3 + 8 * (5 + 8)) as f32));
    assert_eq!((crop.voxels[2 + 5 * 2], crop.geometry.position([2.0; 3])), (-1000.0, [10.0, -10.0, -10.0]));

    // The draw is the same, whatever other rows there are.
    let before = std::fs::read_to_string(place.out().join("data.csv")).unwrap();
    place.import("luna16");
    assert_eq!(before, std::fs::read_to_string(place.out().join("data.csv")).unwrap());
    std::fs::remove_dir_all(place.out()).unwrap();
    place.text("candidates_V2.csv", &format!("seriesuid,coordX,coordY,coordZ,class\n{},900,0,0,1\n", uid(0)));
    assert!(place.refused("luna16").contains("candidate 1 lies outside of it"));
    std::fs::remove_file(place.root().join("candidates_V2.csv")).unwrap();
    assert!(place.refused("luna16").contains("it has no candidates_V2.csv or candidates.csv"));
}
