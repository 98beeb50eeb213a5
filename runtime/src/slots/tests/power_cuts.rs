//! The power goes after every single operation of an update, and takes of what was not synced what it likes: the device then
//! has the plugins that it had before the step under way, or those after it, and every file of them.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::disk::sim::{every_cut, harm, losses};

const STEPS: [Step; 8] = [
    Step::Install("1.0.0"),
    Step::Activate,
    Step::Install("1.1.0"),
    Step::Activate,
    Step::Rollback,
    Step::Install("1.2.0"),
    Step::Fail,
    Step::TakeDown,
];

#[derive(Debug, Clone, Copy)]
enum Step {
    Install(&'static str),
    Activate,
    Rollback,
    Fail,
    TakeDown,
}

const POINTS: [SyncPoint; 7] = [
    "the folder above the data folder, after that was made",
    "the data folder, after the folder of all tasks was made in it",
    "the folder of all tasks, after a task's was made in it",
    "a plugin file's content, before its renaming",
    "a task's folder, after a plugin file was renamed",
    "the content of slots.json, before its renaming",
    "a task's folder, after slots.json was renamed",
];

fn point(path: &Path, made: Option<&str>) -> SyncPoint {
    let names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
    POINTS[match (&names[..], made) {
        (["/"], _) => 0,
        (["/", "data"], _) => 1,
        (["/", "data", "plugins"], _) => 2,
        (["/", "data", "plugins", "lesion", name], _) if name.ends_with(".plugin.new") => 3,
        (["/", "data", "plugins", "lesion"], Some(name)) if name.ends_with("plugin") => 4,
        (["/", "data", "plugins", "lesion", "slots.json.new"], _) => 5,
        (["/", "data", "plugins", "lesion"], Some("slots.json")) => 6,
        _ => panic!("{} is synced after {made:?}, which is no point known to the test", path.display()),
    }]
}

/// A device that does the steps.
struct Device {
    disk: Arc<SimDisk>,
    slots: Slots,
    /// Operations done and state after each step; the first is before all.
    history: Vec<(usize, Option<State>)>,
}

impl Device {
    fn new(disk: SimDisk) -> Self {
        let disk = Arc::new(disk);
        let slots = Slots::on(Arc::clone(&disk) as Arc<dyn Disk>, Arc::new(Still), Path::new("/data"));
        Self { disk, slots, history: Vec::new() }
    }

    fn step(&self, step: Step) -> Result<(), Error> {
        match step {
            Step::Install(version) => {
                let bytes = plugin_file(version);
                self.slots.install_bytes(&bytes, Path::new("given.plugin"), None).map(drop)
            }
            Step::Activate => activate(&self.slots).map(drop),
            Step::Rollback => self.slots.rollback("lesion").map(drop),
            Step::Fail => self.slots.fail_candidate("lesion", "it was too slow"),
            Step::TakeDown => self.slots.take_down("lesion", "it failed"),
        }
    }

    fn note(&mut self) {
        self.history.push((self.disk.operations(), self.slots.state("lesion").unwrap()));
    }

    /// What the device would serve, and everything that it could go back to, file by file.
    fn sound(&self) -> Result<Option<State>, String> {
        let state = self.slots.state("lesion").map_err(|e| e.to_string())?;
        for (slot, placed) in state.iter().flat_map(State::placed) {
            self.slots.read(placed).map_err(|e| format!("{slot}: {e}"))?;
        }
        Ok(state)
    }
}

fn reference(left_out: Option<SyncPoint>) -> Device {
    let mut device = Device::new(SimDisk::new(point, left_out));
    device.note();
    for step in STEPS {
        device.step(step).unwrap();
        device.note();
    }
    device
}

/// The state before the step under way after so many operations, that after it, and the step's number.
fn allowed(device: &Device, operations: usize) -> (usize, [&Option<State>; 2]) {
    let step = device.history.iter().rposition(|(at, _)| *at <= operations).unwrap();
    let before = &device.history[step].1;
    (step, [before, device.history.get(step + 1).map_or(before, |(_, after)| after)])
}

/// One cut: old or new, nothing else, all of it whole; and the rest goes on from there.
fn check(reference: &Device, operations: usize, disk: SimDisk, rest: bool) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| {
        let device = Device::new(disk);
        let found = device.sound()?;
        let (step, [before, after]) = allowed(reference, operations);
        let done = match found {
            found if found == *before => step,
            found if found == *after => step + 1,
            found => return Err(format!("{found:?} is neither {before:?} nor {after:?}")),
        };
        if rest {
            for step in &STEPS[done..] {
                device.step(*step).map_err(|e| format!("{step:?}: {e}"))?;
            }
            let (end, files) = (device.sound()?, device.disk.files());
            let expected = &reference.history[STEPS.len()].1;
            if end != *expected {
                return Err(format!("it ends with {end:?} instead of {expected:?}"));
            }
            if done < STEPS.len() && files != reference.disk.files() {
                return Err(format!("{files:?} lie there instead of {:?}", reference.disk.files()));
            }
        }
        Ok(())
    }))
    .unwrap_or_else(|_| Err("panicked".into()))
}

#[test]
fn a_power_cut_after_any_operation_leaves_the_old_plugins_or_the_new() {
    let long = std::env::var_os("SCANSIDE_LONG").is_some();
    let reference = reference(None);
    let mut tried = 0;
    every_cut(&reference.disk, |cut, platter| {
        for (n, loss) in losses(cut, if long { 200 } else { 4 }).enumerate() {
            let rest = long || (cut + n).is_multiple_of(3);
            if let Err(violation) = check(&reference, cut, platter.after(loss, None), rest) {
                panic!("cut after operation {cut} with loss of {loss:?}: {violation}");
            }
            tried += 1;
        }
    });
    let (tally, operations) = (reference.disk.tally(), reference.disk.operations());
    println!("an update in {} steps, {operations} operations: {tally}; {tried} power cuts", STEPS.len());
    assert!(operations > 60 && tally.synced > 30, "{tally:?}");
}

/// The enumeration is worth something only if it notices that a sync is missing.
#[test]
fn without_any_one_of_the_syncs_an_update_is_lost_or_torn() {
    for left_out in POINTS {
        let reference = reference(Some(left_out));
        println!("{}", harm(&reference.disk, left_out, |cut, disk| check(&reference, cut, disk, false)));
    }
}

#[test]
fn an_operation_that_fails_is_told_and_can_be_done_again() {
    let reference = reference(None);
    for failing in 0..reference.disk.operations() {
        let disk = SimDisk::new(point, None);
        disk.fail_after(failing);
        let device = Device::new(disk);
        for step in STEPS {
            let before = device.sound().unwrap();
            // Only that a file which is not used any more cannot be removed does no harm.
            if let Err(error) = device.step(step) {
                assert!(error.to_string().contains("no storage space"), "{failing}: {error}");
                // Where the last sync failed the step may have been done nevertheless.
                if device.sound().unwrap() == before {
                    device.step(step).unwrap();
                }
            }
        }
        let end = device.sound().unwrap();
        assert_eq!(end, reference.history[STEPS.len()].1, "after {failing}");
    }
}
