//! The power goes after every single operation of a day, and takes of what was not synced what it likes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::day::{Facts, POINTS, Service, State, Violation, point};
use crate::disk::sim::{Loss, Platter, SimDisk, SyncPoint};

/// A day without a power cut, and all that was done to the disk.
struct Reference {
    service: Service,
    state: State,
    left_out: Option<SyncPoint>,
}

impl Reference {
    fn run(left_out: Option<SyncPoint>) -> Self {
        let mut service = Service::start(SimDisk::new(point, left_out), Facts::default(), 0).unwrap();
        service.go_on().unwrap();
        service.check().unwrap();
        let state = service.state().unwrap();
        Self { service, state, left_out }
    }

    /// One cut: what was promised is there, and, if the rest of the day is wanted, it ends as it would have without the cut.
    fn after(&self, disk: SimDisk, (step, facts): (usize, Facts), rest: bool) -> Result<(), Violation> {
        catch_unwind(AssertUnwindSafe(|| {
            let mut service = Service::start(disk, facts, step)?;
            service.check()?;
            if rest {
                service.go_on()?;
                service.check()?;
                let state = service.state()?;
                if state != self.state {
                    return Err(format!("the day ends with {state:#?} instead of {:#?}", self.state));
                }
            }
            Ok(())
        }))
        .unwrap_or_else(|_| Err("panicked".into()))
    }
}

/// The step under way after so many operations, and what was promised by then.
fn known(service: &Service, operations: usize) -> (usize, Facts) {
    let last = service.history.iter().rfind(|(at, ..)| *at <= operations).unwrap();
    (last.1, last.2.clone())
}

/// Runs `each` for every number of operations, on all cores, with what lies on the disk by then.
fn every_cut(service: &Service, each: impl Fn(usize, &Platter) + Sync) {
    let total = service.disk.operations();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for thread in 0..threads {
            let each = &each;
            scope.spawn(move || {
                let mut platter = Platter::of(&SimDisk::new(point, None));
                for cut in 0..=total {
                    if cut > 0 {
                        platter.follow(&service.disk, cut - 1, cut);
                    }
                    if cut % threads == thread {
                        each(cut, &platter);
                    }
                }
            });
        }
    });
}

fn is_long() -> bool {
    std::env::var_os("SCANSIDE_LONG").is_some()
}

/// The losses tried after a cut, and whether the day is lived to its end after each.
fn losses(cut: usize) -> impl Iterator<Item = (Loss, bool)> {
    let drawn = if is_long() { 20 } else { 1 };
    let seeds = (0..drawn).map(move |i| (cut * drawn + i) as u64);
    let drawn = seeds.flat_map(|seed| [Loss::Torn(seed), Loss::Shuffled(seed)]);
    let all = [Loss::Everything, Loss::Nothing, Loss::Content, Loss::Names].into_iter().chain(drawn);
    all.enumerate().map(move |(i, loss)| (loss, is_long() || (cut + i).is_multiple_of(3)))
}

#[test]
fn a_power_cut_after_any_operation_loses_nothing_that_was_promised() {
    let started = Instant::now();
    let reference = Reference::run(None);
    let (tried, days) = (AtomicUsize::new(0), AtomicUsize::new(0));
    every_cut(&reference.service, |cut, platter| {
        for (loss, rest) in losses(cut) {
            let known = known(&reference.service, cut);
            let step = known.0;
            if let Err(violation) = reference.after(platter.after(loss, None), known, rest) {
                panic!("cut after operation {cut} (step {step}) with loss of {loss:?}: {violation}");
            }
            tried.fetch_add(1, Ordering::Relaxed);
            days.fetch_add(usize::from(rest), Ordering::Relaxed);
        }
    });
    let cuts = reference.service.disk.operations() + 1;
    let (tried, days) = (tried.into_inner(), days.into_inner());
    let seconds = started.elapsed().as_secs_f64();
    println!("{cuts} cut points, {tried} power cuts, {days} days lived to their end, {seconds:.1} s");
    assert!(cuts > 500, "{cuts} cut points only");
}

#[test]
fn a_second_power_cut_while_the_first_is_mended_loses_nothing_either() {
    let reference = Reference::run(None);
    let tried = AtomicUsize::new(0);
    let (every, inner) = if is_long() { (3, 1) } else { (31, 4) };
    every_cut(&reference.service, |cut, platter| {
        if cut % every != 0 {
            return;
        }
        // A kill leaves what was written, but not synced, to be read as if it were safe.
        for first in [Loss::Nothing, Loss::Shuffled(cut as u64)] {
            let disk = platter.after(first, None);
            let mut second = if first == Loss::Nothing { platter.clone() } else { Platter::of(&disk) };
            let (step, facts) = known(&reference.service, cut);
            let mut service = Service::start(disk, facts, step).unwrap();
            for _ in step..super::day::DAY.len().min(step + 2) {
                service.one_step().unwrap();
            }
            for again in 1..=service.disk.operations() {
                second.follow(&service.disk, again - 1, again);
                if again % inner != 0 {
                    continue;
                }
                for loss in [Loss::Everything, Loss::Shuffled(again as u64)] {
                    let known = known(&service, again);
                    let rest = again % 50 == 0;
                    if let Err(violation) = reference.after(second.after(loss, None), known, rest) {
                        panic!("cut after {cut} ({first:?}), then after {again} ({loss:?}): {violation}");
                    }
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    println!("{} second cuts", tried.into_inner());
}

/// The enumeration is worth something only if it notices that a sync is missing.
#[test]
fn without_any_one_of_the_syncs_something_is_lost() {
    for left_out in POINTS {
        let reference = Reference::run(Some(left_out));
        let found = std::sync::Mutex::new(None);
        let tried = AtomicUsize::new(0);
        every_cut(&reference.service, |cut, platter| {
            for loss in [Loss::Everything, Loss::Content, Loss::Names, Loss::Shuffled(cut as u64)] {
                if found.lock().unwrap().is_some() {
                    return;
                }
                let known = known(&reference.service, cut);
                tried.fetch_add(1, Ordering::Relaxed);
                if let Err(violation) = reference.after(platter.after(loss, reference.left_out), known, false)
                {
                    *found.lock().unwrap() = Some(format!("cut {cut}, {loss:?}: {violation}"));
                }
            }
        });
        let (found, tried) = (found.into_inner().unwrap(), tried.into_inner());
        let found =
            found.unwrap_or_else(|| panic!("{tried} losses without the sync of {left_out} did no harm"));
        println!("without the sync of {left_out}, after {tried} losses: {found}");
    }
}

#[test]
fn an_operation_that_fails_is_told_and_its_repetition_succeeds() {
    let reference = Reference::run(None);
    let every = if is_long() { 1 } else { 4 };
    let opening = reference.service.history[1].0;
    let total = reference.service.disk.operations();
    for failing in (opening + 1..total).step_by(every) {
        let disk = SimDisk::new(point, None);
        disk.fail_after(failing);
        let mut service = Service::start(disk, Facts::default(), 0).unwrap();
        service.go_on_in_spite_of_faults().unwrap_or_else(|e| panic!("after {failing}: {e}"));
        service.check().unwrap_or_else(|e| panic!("after {failing}: {e}"));
        assert_eq!(service.state().unwrap(), reference.state, "after {failing}");
    }
}
