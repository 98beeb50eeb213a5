//! The service on a machine that does what machines do: a disk that is really full, a clock that is set.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use runtime::result::Kind;
use runtime::volume::{AxisCodes, Volume};
use tempfile::TempDir;
use tests::dicom::{SeriesOptions, write_series};
use tests::fixture::Fixture;
use tests::mosquitto::Mosquitto;
use tests::scanner::{self, dcmtk};
use tests::service::{EdgeBox, next_result};
use tests::subscriber::Subscriber;

const ALL: &str = "scanside/v1/north/ct-2/#";

fn uid(number: usize) -> String {
    format!("1.2.826.0.1.3680043.10.99.{number}")
}

/// A series of six slices of `side` × `side` pixels; its files.
fn series(folder: &Path, number: usize, side: usize) -> Vec<PathBuf> {
    let dims = [side, side, 6];
    let voxels = (0..dims.iter().product()).map(|n: usize| ((n * 7 + number * 17) % 1000) as f32).collect();
    let codes: AxisCodes = "LPS".parse().unwrap();
    let volume = Volume::from_parts(dims, voxels, codes.centred([0.5, 0.5, 4.0], dims));
    let place = folder.join(number.to_string());
    fs::create_dir(&place).unwrap();
    let options = SeriesOptions { series_uid: uid(number), ..SeriesOptions::default() };
    write_series(&place, &volume, &options).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn store(to: &EdgeBox, files: &[PathBuf]) -> (bool, String) {
    scanner::run(dcmtk("storescu", to.address(), &[]).args(files)).unwrap()
}

/// A file system of some megabytes, gone with its owner. Only root may mount one; elsewhere there is none.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "scanside"]).arg(&at).output();
        let mounted = mount.is_ok_and(|output| output.status.success());
        assert!(mounted || std::env::var_os("CI").is_none(), "CI runs as root, and root can mount");
        mounted.then_some(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_disk_without_room_loses_nothing_that_was_acknowledged() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let mut on = EdgeBox::new(&broker.url(), &fixture, "").unwrap();
    let Some(_disk) = SmallDisk::mount(on.data()) else {
        println!("not run: only root can mount a small file system");
        return;
    };
    on.install(&fixture.plugin).unwrap();
    // Nothing is left free on purpose, so that writes themselves fail.
    let text = fs::read_to_string(on.config()).unwrap().replace("min_free = \"1MB\"", "min_free = \"0B\"");
    fs::write(on.config(), text).unwrap();
    on.start().unwrap();
    let ballast = on.data().join("ballast");
    fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    // Six slices of half a megabyte a series: the third does not fit.
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for number in 1..=4 {
        let files = series(files.path(), number, 512);
        let (ok, said) = store(&on, &files);
        let count = said.matches("Received Store Response (Success)").count();
        acknowledged.push((number, count));
        if !ok {
            assert!(said.contains("Refused: OutOfResources"), "{said}");
            refused = Some((number, files));
            break;
        }
    }
    let (number, rest) = refused.expect("twelve megabytes are full at some time");
    // With room again the scanner gets rid of the rest, and every whole series has its result.
    fs::remove_file(ballast).unwrap();
    let (ok, said) = store(&on, &rest);
    assert!(ok, "{said}");
    let mut whole = 0;
    while whole < number {
        let (_, result) = next_result(&subscriber).unwrap();
        if result.kind == Kind::Final && result.input.instances == 6 {
            whole += 1;
        }
    }
    on.terminate().unwrap();
    let kept = on.store().unwrap();
    for (number, count) in acknowledged {
        assert!(kept.instances(&uid(number)).unwrap().len() >= count);
    }
}

/// Lets a process believe in another time, which can be changed while it runs.
struct Clock {
    folder: TempDir,
}

impl Clock {
    fn new() -> Self {
        let clock = Self { folder: TempDir::new().unwrap() };
        clock.set("+0");
        clock
    }

    fn set(&self, offset: &str) {
        let (new, file) = (self.folder.path().join("new"), self.folder.path().join("time"));
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(new, file).unwrap();
    }

    /// Only the clock that tells the time is set on real machines; the monotonic one runs on.
    fn start(&self, on: &mut EdgeBox) {
        let library = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
            .map(|arch| format!("/usr/lib/{arch}/faketime/libfaketime.so.1"))
            .into_iter()
            .find(|path| Path::new(path).is_file());
        let library = library.expect("libfaketime; `cargo xtask test` installs it");
        let file = self.folder.path().join("time");
        on.start_with(&[
            ("LD_PRELOAD", library.as_str()),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ])
        .unwrap();
    }
}

/// Natively only: the library to be preloaded is this machine's.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_clock_that_is_set_neither_ends_series_nor_deletes_them() {
    let (broker, files) = (Mosquitto::start().unwrap(), TempDir::new().unwrap());
    let fixture = Fixture::for_a_service(|_| ());
    let subscriber = Subscriber::new(broker.port, ALL).unwrap();
    let extra = "series.association_end = false\nseries.idle = \"6s\"\nstore.retention = \"1min\"";
    let mut on = EdgeBox::with_plugin(&broker.url(), &fixture, extra).unwrap();
    let clock = Clock::new();
    clock.start(&mut on);
    let first = series(files.path(), 1, 24);
    assert!(store(&on, &first).0);
    let (_, before) = next_result(&subscriber).unwrap();
    assert_eq!(before.input.instances, 6);

    // In the middle of a series, ten years ahead.
    let second = series(files.path(), 2, 24);
    assert!(store(&on, &second[..3]).0);
    clock.set("+3650d");
    sleep(Duration::from_secs(2));
    assert!(store(&on, &second[3..]).0);
    let (_, ahead) = next_result(&subscriber).unwrap();
    assert_eq!((ahead.input.instances, ahead.revision), (6, 0), "it was one series");
    let year = |text: &str| text[..4].parse::<i32>().unwrap();
    assert_eq!(year(&ahead.created) - year(&before.created), 10, "the clock was set");
    // Some rounds of deletion later.
    sleep(Duration::from_secs(14));

    // And back, in the middle of a series.
    let third = series(files.path(), 3, 24);
    assert!(store(&on, &third[..3]).0);
    clock.set("-400d");
    sleep(Duration::from_secs(1));
    assert!(store(&on, &third[3..]).0);
    let (_, back) = next_result(&subscriber).unwrap();
    assert_eq!((back.input.instances, back.revision), (6, 0));
    on.terminate().unwrap();
    let kept = on.store().unwrap();
    for number in 1..=3 {
        assert_eq!(kept.results(&uid(number)).unwrap().len(), 1, "series {number} was deleted");
    }
}
