use runtime::volume::{ReadOptions, read};

use crate::dicom::Series;
use crate::place::{Place, targets};

/// A nodule's mark: the border of a square of 3 by 3 around column `x` and row `y` of slice `k`.
fn mark(uid: &str, [x, y, k]: [usize; 3], malignancy: u32) -> String {
    let border = [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (1, 2), (0, 2), (0, 1)];
    let points = border.map(|(dx, dy)| {
        let (x, y) = (x - 1 + dx, y - 1 + dy);
        format!("<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>")
    });
    format!(
        "<unblindedReadNodule><noduleID>1</noduleID><characteristics><subtlety>4</subtlety><malignancy>{malignancy}</malignancy>\
         </characteristics><roi><imageZposition>0</imageZposition><imageSOP_UID>{uid}.{k}</imageSOP_UID><inclusion>TRUE</inclusion>{}\
         </roi></unblindedReadNodule>",
        points.concat()
    )
}

/// A file of readings, one of `nodules` a reader.
fn readings(uid: &str, nodules: &[String]) -> String {
    let sessions = nodules.join("</readingSession><readingSession>");
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<LidcReadMessage uid=\"1\" xmlns=\"http://www.nih.gov\"><ResponseHeader>\
         <SeriesInstanceUid>{uid}</SeriesInstanceUid></ResponseHeader><readingSession>{sessions}</readingSession></LidcReadMessage>"
    )
}

#[test]
fn lidcs_readings_become_crops_of_malignant_and_benign_nodules() {
    let place = Place::new();
    let scan = |patient: &str, uid: &str| {
        let value = |i: usize, j: usize, k: usize| (i + 20 * (j + 20 * k)) as i16;
        let series = Series { uid, dims: [20, 20, 6], spacing: [5.0, 5.0, 5.0], tilt: 0.0, value: &value };
        let folder = format!("{patient}/01-01-2000-NA-NA-30178/3000566.000000-NA-03192");
        series.write(&place.root().join(&folder), |k| format!("1-{k:03}.dcm"));
        folder
    };
    let small = "<unblindedReadNodule><noduleID>9</noduleID><roi><imageSOP_UID>1.9.1.0</imageSOP_UID><inclusion>TRUE</inclusion>\
                 <edgeMap><xCoord>1</xCoord><yCoord>1</yCoord></edgeMap></roi></unblindedReadNodule>";
    let uid = "1.9.1";
    // Malignant by 4, benign by 3, undecided by 3, and one of two readers only.
    let sessions = [
        [mark(uid, [5, 5, 2], 5), mark(uid, [14, 5, 2], 1), mark(uid, [5, 14, 4], 3), small.into()].concat(),
        [mark(uid, [5, 5, 2], 4), mark(uid, [14, 5, 2], 2), mark(uid, [5, 14, 4], 2)].concat(),
        [
            mark(uid, [6, 5, 3], 4),
            mark(uid, [14, 5, 2], 2),
            mark(uid, [5, 14, 4], 4),
            mark(uid, [14, 14, 1], 5),
        ]
        .concat(),
        [mark(uid, [6, 5, 3], 2), mark(uid, [14, 14, 1], 5)].concat(),
    ];
    let folder = scan("LIDC-IDRI/LIDC-IDRI-0001", uid);
    place.text(&format!("{folder}/069.xml"), &readings(uid, &sessions));
    // Of another patient the readings lie apart; there are also those of an X-ray, and of a series that is not there.
    scan("LIDC-IDRI/LIDC-IDRI-0002", "1.9.2");
    let one = mark("1.9.2", [9, 9, 3], 4);
    place.text("tcia-lidc-xml/157/158.xml", &readings("1.9.2", &[one.clone(), one.clone(), one]));
    place.text("tcia-lidc-xml/157/159.xml", "<IdriReadMessage xmlns=\"http://www.nih.gov\"/>");
    place.text("tcia-lidc-xml/157/160.xml", &readings("1.9.3", &[]));
    let (told, warned) = place.import("lidc");
    assert!(told.contains("3 volumes; labels malignant\n"), "{told}{warned}");
    assert!(warned.contains("readings without a series: 1 left out, the first 1.9.3"), "{warned}");
    assert!(warned.contains("nodules rated by too few readers: 1 left out"), "{warned}");
    assert!(warned.contains("nodules with a mean rating of 3: 1 left out"), "{warned}");
    let (_, table, slices) = place.task("");
    assert_eq!(slices.count, 10);
    let expected = [("LIDC-IDRI-0001-1", true), ("LIDC-IDRI-0001-2", false), ("LIDC-IDRI-0002-1", true)];
    assert_eq!(targets(&table), expected);
    assert_eq!(table.samples[0].patient.as_deref(), Some("LIDC-IDRI-0001"));
    let (malignancy, readers) = (place.column("data.csv", "malignancy"), place.column("data.csv", "readers"));
    assert_eq!(
        (malignancy["LIDC-IDRI-0001-1"].as_str(), readers["LIDC-IDRI-0001-1"].as_str()),
        ("3.75", "4")
    );
    assert_eq!(
        (malignancy["LIDC-IDRI-0001-2"].as_str(), readers["LIDC-IDRI-0001-2"].as_str()),
        ("1.67", "3")
    );
    // Ten voxels around column 14, row 5, slice 2: from column 9 or 10, row 0 or 1, slice -3 or -2.
    let crop = read(table.samples[1].image(), &ReadOptions::default()).unwrap().remove(0);
    assert_eq!(crop.dims, [10, 10, 10]);
    let at = crop.voxels.iter().position(|&value| value as usize == 14 + 20 * (5 + 20 * 2)).unwrap();
    assert!([at % 10, at / 10 % 10, at / 100].iter().all(|i| [4, 5].contains(i)), "{at}");

    std::fs::remove_dir_all(place.out()).unwrap();
    place.text("tcia-lidc-xml/157/158.xml", "<LidcReadMessage>");
    assert!(place.refused("lidc").contains("158.xml cannot be imported: it is not sound XML"));
}
