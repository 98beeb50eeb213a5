//! The service on a disk that is really full.
#![allow(missing_docs, reason = "a test")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use runtime::result::Kind;
use tests::service::{EdgeBox, Site, series_uid};

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
    let mut site = Site::new("").unwrap();
    // A new one, whose data lies on the small disk from the beginning.
    site.on = EdgeBox::new(&site.broker.url(), &site.fixture, "").unwrap();
    let Some(_disk) = SmallDisk::mount(site.on.data()) else {
        println!("not run: only root can mount a small file system");
        return;
    };
    site.on.install(&site.fixture.plugin).unwrap();
    // Nothing is left free on purpose, so that writes themselves fail.
    let text =
        fs::read_to_string(site.on.config()).unwrap().replace("min_free = \"1MB\"", "min_free = \"0B\"");
    fs::write(site.on.config(), text).unwrap();
    site.on.start().unwrap();
    let ballast = site.on.data().join("ballast");
    fs::write(&ballast, vec![1; 3 << 20]).unwrap();
    // Six slices of half a megabyte a series: the third does not fit.
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for number in 1..=4 {
        let files = site.series(number, [512, 512, 6]).unwrap();
        let (ok, said) = site.send(&files).unwrap();
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
    let (ok, said) = site.send(&rest).unwrap();
    assert!(ok, "{said}");
    let mut whole = 0;
    while whole < number {
        let result = site.next().unwrap();
        if result.kind == Kind::Final && result.input.instances == 6 {
            whole += 1;
        }
    }
    site.on.terminate().unwrap();
    let kept = site.on.store().unwrap();
    for (number, count) in acknowledged {
        assert!(kept.instances(&series_uid(number)).unwrap().len() >= count);
    }
}
