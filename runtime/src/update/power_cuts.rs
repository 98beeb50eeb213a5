//! The power goes after every single operation of what updates keep: what was seen is never forgotten, and what was fetched
//! before a step ended is not fetched again. What becomes of plugins is in the tests of `slots`, and an update as a whole in
//! `whole_update`.

use std::path::Path;
use std::sync::Arc;

use firmware_config::TargetRef;

use super::fetch::Downloads;
use super::fetch::tests::{Torn, source, target};
use super::source::TargetFile;
use super::state::{Followed, State};
use crate::disk::Disk;
use crate::disk::sim::{SimDisk, SyncPoint, every_cut, harm, losses};

const POINTS: [SyncPoint; 7] = [
    "the folder above the data folder, after that was made",
    "the data folder, after the folder of updates was made in it",
    "the folder of updates, after that of downloads was made in it",
    "the content of trust.json, before its renaming",
    "the folder of updates, after trust.json was renamed",
    "the folder of downloads, after a file was made in it",
    "the content of a download",
];

fn point(path: &Path, made: Option<&str>) -> SyncPoint {
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    POINTS[match (&names[..], made) {
        (["/"], _) => 0,
        (["/", "data"], _) => 1,
        (["/", "data", "updates"], Some("downloads") | None) => 2,
        (["/", "data", "updates", "trust.json.new"], _) => 3,
        (["/", "data", "updates"], Some("trust.json")) => 4,
        (["/", "data", "updates", "downloads"], _) => 5,
        (["/", "data", "updates", "downloads", _], _) => 6,
        _ => panic!("{} is synced after {made:?}, which is no point known to the test", path.display()),
    }]
}

const UPDATES: &str = "/data/updates";
const TRUST: &str = "/data/updates/trust.json";

/// What a device does: fetches a plugin over a line that breaks twice, sees a release meanwhile, fetches the next. That it fetches
/// before it has seen anything, which no device does, lets the test see that the folder of downloads is durable by itself.
const STEPS: [Step; 7] = [
    Step::Fetch(0, 3000),
    Step::See(1),
    Step::Fetch(0, 5000),
    Step::Fetch(0, 9000),
    Step::See(2),
    Step::Fetch(1, 4000),
    Step::Fetch(1, 9000),
];

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Metadata of this version.
    See(u64),
    /// So many bytes of a file of 9,000, all in all, then the line breaks.
    Fetch(u8, usize),
}

fn content(file: u8) -> Vec<u8> {
    (0..9000u32).map(|i| (i * 7 + u32::from(file)) as u8).collect()
}

fn state(version: u64) -> State {
    State {
        anchor: "a".into(),
        root: "{}".into(),
        timestamp: Some(format!("{version}").repeat(700)),
        snapshot: None,
        targets: None,
        clock: version as i64,
        desired: Some(Followed { revision: version, signed: "{}".into() }),
    }
}

struct Device {
    disk: Arc<SimDisk>,
    downloads: Downloads,
}

impl Device {
    fn new(disk: SimDisk) -> Result<Self, String> {
        let disk = Arc::new(disk);
        let folder = Path::new(UPDATES).join("downloads");
        crate::files::create_folders_on(&*disk, Path::new(UPDATES), Path::new(UPDATES))
            .map_err(|e| e.to_string())?;
        let downloads =
            Downloads::on(Arc::clone(&disk) as Arc<dyn Disk>, &folder).map_err(|e| e.to_string())?;
        Ok(Self { disk, downloads })
    }

    /// Bytes that were sent for it, and whether it has come to its end.
    fn fetch(&self, file: u8, upto: usize) -> (u64, bool) {
        let (content, target) = (content(file), target(&content(file)));
        let have = self.downloads.progress(&target).bytes as usize;
        let line: Torn = source(&content, upto.saturating_sub(have));
        let fetched = self.downloads.fetch(&line, &target, &TargetFile::new(&target), &mut |_| true);
        let whole = fetched.is_ok_and(|path| self.disk.content(&path).is_ok_and(|found| found == content));
        (line.sent.into_inner(), whole)
    }

    fn step(&self, step: Step) {
        match step {
            Step::See(version) => {
                state(version).write(&*self.disk, Path::new(TRUST)).expect("a written state");
            }
            Step::Fetch(file, upto) => drop(self.fetch(file, upto)),
        }
    }

    fn seen(&self) -> Result<Option<u64>, String> {
        let state = State::read(&*self.disk, Path::new(TRUST)).map_err(|e| e.to_string())?;
        Ok(state.and_then(|state| Some(state.desired?.revision)))
    }

    fn here(&self, file: u8) -> u64 {
        let target: TargetRef = target(&content(file));
        self.downloads.progress(&target).bytes
    }
}

/// After each step: operations done, what was seen, bytes that are here.
type History = Vec<(usize, Option<u64>, [u64; 2])>;

fn reference(left_out: Option<SyncPoint>) -> (Device, History) {
    let device = Device::new(SimDisk::new(point, left_out)).expect("a device");
    let note = |device: &Device| {
        (device.disk.operations(), device.seen().expect("a state"), [0, 1].map(|f| device.here(f)))
    };
    let mut history = vec![note(&device)];
    for step in STEPS {
        device.step(step);
        history.push(note(&device));
    }
    (device, history)
}

fn check(history: &History, operations: usize, disk: SimDisk) -> Result<(), String> {
    let device = Device::new(disk)?;
    let step = history.iter().rposition(|(at, ..)| *at <= operations).unwrap_or(0);
    let (_, before, here) = &history[step];
    let after = history.get(step + 1).map_or(before, |(_, after, _)| after);
    let found = device.seen()?;
    if found != *before && found != *after {
        return Err(format!("{found:?} was seen, neither {before:?} nor {after:?}"));
    }
    for file in [0, 1] {
        let (sent, whole) = device.fetch(file, 9000);
        // What a cut has torn may come as a whole once more, if the step had not ended.
        let (sent, whole) = if whole { (sent, whole) } else { device.fetch(file, 9000) };
        if !whole {
            return Err(format!("file {file} does not come"));
        }
        let kept = here[usize::from(file)];
        // In the middle of a step that fetches, the last of it may be torn, and the whole comes again.
        let is_fetched = history.get(step + 1).is_some_and(|(.., next)| next[usize::from(file)] != kept);
        if !is_fetched && sent + kept > 9000 {
            return Err(format!("file {file}: {kept} bytes were here, and {sent} were sent again"));
        }
    }
    Ok(())
}

#[test]
fn a_power_cut_after_any_operation_forgets_nothing_that_was_seen_or_fetched() {
    let drawn = if std::env::var_os("SCANSIDE_LONG").is_some() { 200 } else { 8 };
    let (device, history) = reference(None);
    let mut tried = 0;
    every_cut(&device.disk, |cut, platter| {
        for loss in losses(cut, drawn) {
            if let Err(violation) = check(&history, cut, platter.after(loss, None)) {
                panic!("cut after operation {cut} with loss of {loss:?}: {violation}");
            }
            tried += 1;
        }
    });
    let (tally, operations) = (device.disk.tally(), device.disk.operations());
    println!("metadata and downloads, {operations} operations: {tally}; {tried} power cuts");
    assert!(operations > 20 && tally.synced > 10, "{tally:?}");
}

#[test]
fn without_any_one_of_the_syncs_something_is_forgotten() {
    for left_out in POINTS {
        let (device, history) = reference(Some(left_out));
        println!("{}", harm(&device.disk, left_out, |cut, disk| check(&history, cut, disk)));
    }
}
