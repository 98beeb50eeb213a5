//! The service on a machine whose clock is set. Natively only: the library that is preloaded is this machine's.
#![allow(missing_docs, reason = "a test")]
#![cfg(target_arch = "x86_64")]

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;
use tests::service::{EdgeBox, Site, series_uid};

/// Debian's.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

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
        let is_there = fs::metadata(LIBRARY).is_ok();
        assert!(is_there, "{LIBRARY} is missing: `cargo xtask test` installs the package faketime");
        let file = self.folder.path().join("time");
        on.start_with(&[
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ])
        .unwrap();
    }
}

#[test]
fn a_clock_that_is_set_neither_ends_series_nor_deletes_them() {
    let extra = "series.association_end = false\nseries.idle = \"6s\"\nstore.retention = \"1min\"";
    let mut site = Site::new(extra).unwrap();
    let clock = Clock::new();
    clock.start(&mut site.on);
    let first = site.series(1, [24, 24, 6]).unwrap();
    assert!(site.send(&first).unwrap().0);
    let before = site.next().unwrap();
    assert_eq!(before.input.instances, 6);

    // In the middle of a series, ten years ahead.
    let second = site.series(2, [24, 24, 6]).unwrap();
    assert!(site.send(&second[..3]).unwrap().0);
    clock.set("+3650d");
    sleep(Duration::from_secs(2));
    assert!(site.send(&second[3..]).unwrap().0);
    let ahead = site.next().unwrap();
    assert_eq!((ahead.input.instances, ahead.revision), (6, 0), "it was one series");
    let year = |text: &str| text[..4].parse::<i32>().unwrap();
    assert_eq!(year(&ahead.created) - year(&before.created), 10, "the clock was set");
    // Some rounds of deletion later.
    sleep(Duration::from_secs(14));

    // And back, in the middle of a series.
    let third = site.series(3, [24, 24, 6]).unwrap();
    assert!(site.send(&third[..3]).unwrap().0);
    clock.set("-400d");
    sleep(Duration::from_secs(1));
    assert!(site.send(&third[3..]).unwrap().0);
    let back = site.next().unwrap();
    assert_eq!((back.input.instances, back.revision), (6, 0));
    site.on.terminate().unwrap();
    let kept = site.on.store().unwrap();
    for number in 1..=3 {
        assert_eq!(kept.results(&series_uid(number)).unwrap().len(), 1, "series {number} was deleted");
    }
}
