use crate::dicom::Series;
use crate::place::{Place, targets};

#[test]
fn cq500_takes_the_majority_and_a_plain_series() {
    let place = Place::new();
    let findings = [
        "ICH",
        "IPH",
        "IVH",
        "SDH",
        "EDH",
        "SAH",
        "BleedLocation-Left",
        "BleedLocation-Right",
        "ChronicBleed",
        "Fracture",
        "CalvarialFracture",
        "OtherFracture",
        "MassEffect",
        "MidlineShift",
    ];
    let header: Vec<String> =
        (1..=3).flat_map(|reader| findings.map(|finding| format!("R{reader}:{finding}"))).collect();
    let row = |name: &str, votes: [[u8; 14]; 3]| {
        let votes: Vec<String> = votes.as_flattened().iter().map(u8::to_string).collect();
        format!("{name},B1,{}\n", votes.join(","))
    };
    let with = |ones: &[usize]| std::array::from_fn(|i| u8::from(ones.contains(&i)));
    let rows = [
        // ICH by two, IPH by one, fracture by three.
        row("CQ500-CT-0", [with(&[0, 1, 9]), with(&[0, 9]), with(&[9])]),
        row("CQ500-CT-10", [with(&[]), with(&[13]), with(&[13])]),
        row("CQ500-CT-11", [with(&[]), with(&[]), with(&[])]),
        row("CQ500-CT-12", [with(&[]), with(&[]), with(&[])]),
    ];
    place.text("reads.csv", &format!("name,Category,{}\n{}", header.join(","), rows.concat()));
    let scan = |patient: usize, series: &str, slices: usize, tilt: f64| {
        let folder = format!("CQ500CT{patient} CQ500CT{patient}/Unknown Study/{series}");
        let uid = format!("1.4.{patient}.{}", series.len());
        let value = |i: usize, j: usize, _: usize| (i * j) as i16;
        let series =
            Series { uid: &uid, dims: [8, 8, slices], spacing: [1.0, 1.0, 2.0], tilt, value: &value };
        series.write(&place.root().join(folder), |k| format!("CT{k:06}.dcm"));
    };
    scan(0, "CT Plain", 12, 0.0);
    scan(0, "CT PLAIN THIN", 20, 0.0);
    scan(0, "CT POST CONTRAST", 12, 0.0);
    // The preferred one is tilted, and so the thin one is taken.
    scan(10, "CT Plain", 12, 0.8);
    scan(10, "CT PLAIN THIN", 14, 0.0);
    scan(11, "CT BONE", 12, 0.0);
    let (told, warned) = place.import("cq500");
    assert!(told.contains("2 volumes; labels ICH, IPH,"), "{told}");
    assert!(
        warned.contains("patients of reads.csv without a folder: 1 left out, the first CQ500-CT-12"),
        "{warned}"
    );
    assert!(
        warned.contains("patients without a plain series that can be read: 1 left out, the first CQ500CT11")
    );
    let (_, table, slices) = place.task("");
    assert_eq!((targets(&table), slices.count), (vec![("CQ500-CT-0", true), ("CQ500-CT-10", false)], 12));
    assert_eq!((table.samples[0].targets[1], table.samples[1].targets[8]), (Some(false), Some(true)));
    assert!(
        table.samples[0].image().ends_with("CT Plain") && table.samples[1].image().ends_with("CT PLAIN THIN")
    );
    assert_eq!(place.column("data.csv", "Fracture")["CQ500-CT-0"], "1");

    place.text("reads.csv", "name,R1:ICH\nCQ500-CT-0,1\n");
    std::fs::remove_dir_all(place.out()).unwrap();
    assert!(place.refused("cq500").contains("it has no column `R2:ICH`"));
}
