use std::collections::BTreeSet;

use firmware_config::{Reported, ReportedPlugin, ReportedTask, TargetRef, Task};
use proptest::prelude::*;

use super::*;
use crate::desired::{state, utc};
use crate::rollout::{SCHEMA, fractions};

const TASK: &str = "lesion";

fn device(n: usize) -> DeviceName {
    format!("north/d{n}").parse().unwrap()
}

fn target(version: &str) -> TargetRef {
    let sha256 = crate::keys::hex(version.as_bytes());
    TargetRef { name: format!("north/lesion-{version}.plugin"), length: 10, sha256: format!("{sha256:0>64}") }
}

fn wanted(version: &str) -> Wanted {
    Wanted { target: target(version), shadow: None }
}

fn rollout(devices: usize, shares: &str, max_failures: u32) -> Rollout {
    let all: Vec<DeviceName> = (0..devices).map(device).collect();
    Rollout {
        schema: SCHEMA.into(),
        name: "r".into(),
        task: TASK.into(),
        version: "2.0.0".into(),
        targets: [("north".to_owned(), target("2.0.0"))].into(),
        shadow: None,
        waves: fractions(&all, shares).unwrap(),
        max_failures,
        settle: 10,
        patience: 300,
        days: 30,
        created: utc(jiff::Timestamp::UNIX_EPOCH),
        serial: 1,
        status: Status::Running,
        reason: None,
        devices: BTreeMap::new(),
    }
}

fn reported(device: &DeviceName, revision: u64, state: TaskState, sha256: &str) -> Reported {
    let plugin = ReportedPlugin {
        task: Task { name: TASK.into(), version: "2.0.0".into() },
        sha256: sha256.into(),
        target: None,
    };
    let task = ReportedTask {
        state,
        active: Some(plugin),
        candidate: None,
        previous: None,
        progress: None,
        failure: (state == TaskState::Failed).then(|| "a logit is off".into()),
        shadow: None,
    };
    Reported {
        schema: firmware_config::REPORTED_SCHEMA.into(),
        site: device.site.clone(),
        device: device.device.clone(),
        build: "test".into(),
        at: utc(jiff::Timestamp::UNIX_EPOCH),
        revision: Some(revision),
        refused: None,
        metadata: None,
        tasks: [(TASK.to_owned(), task)].into(),
    }
}

/// The broker, and devices that do as they are told, or fail, or are silent.
#[derive(Default)]
struct World {
    seen: BTreeMap<DeviceName, Seen>,
    failing: BTreeSet<DeviceName>,
    silent: BTreeSet<DeviceName>,
}

impl World {
    fn tell(&mut self, told: &Told) {
        let desired =
            state(&told.device, told.revision, utc(jiff::Timestamp::UNIX_EPOCH), told.tasks.clone());
        self.seen.entry(told.device.clone()).or_default().desired = Some(desired);
    }

    fn devices_act(&mut self) {
        for (device, seen) in &mut self.seen {
            let Some(desired) = seen.desired.as_ref().filter(|_| !self.silent.contains(device)) else {
                continue;
            };
            let Some(wanted) = desired.tasks.get(TASK) else { continue };
            let fails = self.failing.contains(device) && wanted.target == target("2.0.0");
            let (what, runs) = if fails {
                (TaskState::Failed, target("1.0.0"))
            } else {
                (TaskState::Active, wanted.target.clone())
            };
            seen.reported = Some(reported(device, desired.revision, what, &runs.sha256));
        }
    }

    /// Steps as the tool does, with `lossy` choosing what a crash keeps from being published; returns the last state.
    fn run(&mut self, rollout: Rollout, from: u64, to: u64, mut lossy: impl FnMut(u64) -> bool) -> Rollout {
        let mut rollout = rollout;
        for now in from..to {
            let (next, told) = step(&rollout, &self.seen, now);
            rollout = next;
            for told in told {
                if !lossy(now) {
                    self.tell(&told);
                }
            }
            self.devices_act();
        }
        rollout
    }
}

#[test]
fn waves_follow_each_other_once_they_have_settled() {
    let (start, mut world) = (rollout(20, "5%,25%,100%", 100), World::default());
    let (first, told) = step(&start, &world.seen, 100);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].revision, told[0].tasks[TASK].clone()), (1, wanted("2.0.0")));
    for told in &told {
        world.tell(told);
    }
    assert!(step(&first, &world.seen, 101).1.is_empty(), "told once");
    world.devices_act();
    let (healthy, told) = step(&first, &world.seen, 105);
    assert_eq!((healthy.count(Verdict::Healthy), told.len()), (1, 0));
    assert!(step(&healthy, &world.seen, 114).1.is_empty(), "it must stand for ten seconds");
    let (second, told) = step(&healthy, &world.seen, 115);
    assert_eq!((second.devices.len(), told.len()), (5, 4));
    let done = world.run(healthy, 115, 200, |_| false);
    assert_eq!((done.status, done.count(Verdict::Healthy)), (Status::Done, 20));
}

#[test]
fn it_stops_at_its_threshold_and_goes_on_only_when_told() {
    let mut world = World { failing: (5..8).map(device).collect(), ..World::default() };
    let stopped = world.run(rollout(100, "10%,100%", 250), 0, 60, |_| false);
    assert_eq!((stopped.status, stopped.devices.len()), (Status::Stopped, 10));
    assert_eq!(stopped.reason.as_deref(), Some("3 of 10 devices told have failed, at most 25.0 % may"));
    assert_eq!(stopped.devices[&device(5)].reason.as_deref(), Some("a logit is off"));
    let later = world.run(stopped.clone(), 60, 90, |_| false);
    assert_eq!(later.devices.len(), 10);
    let more = Rollout { max_failures: 300, status: Status::Running, reason: None, ..stopped };
    assert_eq!(world.run(more, 60, 120, |_| false).status, Status::Done);
}

#[test]
fn who_is_silent_fails_and_may_come_back() {
    let mut world = World { silent: [device(0)].into(), ..World::default() };
    let waiting = world.run(rollout(1, "100%", 0), 0, 299, |_| false);
    assert_eq!((waiting.status, waiting.count(Verdict::Waiting)), (Status::Running, 1));
    let stopped = world.run(waiting, 299, 302, |_| false);
    assert_eq!((stopped.status, stopped.count(Verdict::Failed)), (Status::Stopped, 1));
    world.silent.clear();
    world.devices_act();
    let back = world.run(Rollout { status: Status::Running, ..stopped }, 302, 320, |_| false);
    assert_eq!((back.status, back.count(Verdict::Healthy)), (Status::Done, 1));
}

#[test]
fn abort_puts_back_what_was_and_leaves_alone_what_others_changed() {
    let mut world = World::default();
    let other = ("other".to_owned(), wanted("9.0.0"));
    for n in 0..3 {
        let tasks = [(TASK.to_owned(), wanted("1.0.0")), other.clone()].into();
        world.tell(&Told { device: device(n), revision: 7, tasks });
    }
    world.devices_act();
    let running = world.run(rollout(4, "100%", 0), 0, 2, |_| false);
    assert_eq!(running.devices[&device(0)].revision, 8);
    // Meanwhile somebody tells d1 another version, and d2 another task besides.
    world.tell(&Told { device: device(1), revision: 9, tasks: [(TASK.to_owned(), wanted("3.0.0"))].into() });
    let more = [(TASK.to_owned(), wanted("2.0.0")), ("new".to_owned(), wanted("5.0.0"))].into();
    world.tell(&Told { device: device(2), revision: 9, tasks: more });
    let aborting = Rollout { status: Status::Aborting, ..running };
    let aborted = world.run(aborting, 2, 6, |now| now < 3);
    assert_eq!(aborted.status, Status::Aborted);
    let tasks = |n| &world.seen[&device(n)].desired.as_ref().unwrap().tasks;
    assert_eq!(*tasks(0), [(TASK.to_owned(), wanted("1.0.0")), other].into());
    assert_eq!(*tasks(1), [(TASK.to_owned(), wanted("3.0.0"))].into());
    assert_eq!(*tasks(2), [(TASK.to_owned(), wanted("1.0.0")), ("new".to_owned(), wanted("5.0.0"))].into());
    assert!(tasks(3).is_empty(), "it had none");
    assert_eq!(aborted.devices[&device(1)].verdict, Verdict::Overtaken);
    assert!(step(&aborted, &world.seen, 9).1.is_empty());
}

#[test]
fn what_was_set_up_by_hand_is_not_taken_down() {
    let mut world = World::default();
    world.seen.entry(device(0)).or_default().reported =
        Some(reported(&device(0), 0, TaskState::Active, "00"));
    let (next, told) = step(&rollout(1, "100%", 0), &world.seen, 0);
    assert!(told.is_empty());
    let progress = &next.devices[&device(0)];
    assert!(
        progress.verdict == Verdict::Overtaken
            && progress.reason.as_ref().unwrap().contains("no desired state")
    );
}

#[test]
fn shadows_are_waited_for() {
    let mut world = World::default();
    let shadow = firmware_config::Shadow {
        results: 5,
        promote: Promote::Operator,
        min_agreement: 0.9,
        max_difference: 0.1,
    };
    let start = Rollout { shadow: Some(shadow), ..rollout(1, "100%", 0) };
    let (told_state, told) = step(&start, &world.seen, 0);
    world.tell(&told[0]);
    let mut report = reported(&device(0), 1, TaskState::Shadow, "00");
    let task = report.tasks.get_mut(TASK).unwrap();
    task.candidate = Some(ReportedPlugin { sha256: target("2.0.0").sha256, ..task.active.clone().unwrap() });
    for (results, verdict) in [(4, Verdict::Waiting), (5, Verdict::Healthy)] {
        report.tasks.get_mut(TASK).unwrap().shadow = Some(firmware_config::ShadowReport {
            results,
            of: 5,
            agreement: 1.0,
            mean_difference: 0.0,
            max_difference: 0.0,
            drift: 0.0,
        });
        world.seen.get_mut(&device(0)).unwrap().reported = Some(report.clone());
        let (next, _) = step(&told_state, &world.seen, 10_000);
        assert_eq!(next.devices[&device(0)].verdict, verdict);
    }
}

#[test]
fn a_forged_state_is_overwritten_with_a_higher_revision() {
    let mut world = World::default();
    let running = world.run(rollout(1, "100%", 0), 0, 2, |_| false);
    let seen = world.seen.get_mut(&device(0)).unwrap();
    seen.desired.as_mut().unwrap().revision = 50;
    seen.forged = Some("nobody signed it".into());
    let (next, told) = step(&running, &world.seen, 3);
    assert_eq!((told[0].revision, next.devices[&device(0)].revision), (51, 51));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever fails, is silent or is lost: a wave is told only when all before it have settled, nothing is told beyond the
    /// threshold, and the same again gives the same again.
    #[test]
    fn waves_are_never_exceeded(
        count in 1usize..40,
        shares in prop::sample::select(vec!["100%", "10%,100%", "5%,25%,100%", "2.5%,50%,75%,100%"]),
        max_failures in 0u32..=1000,
        failing in prop::collection::btree_set(0usize..40, 0..12),
        silent in prop::collection::btree_set(0usize..40, 0..4),
        losses in prop::collection::vec(any::<bool>(), 64),
    ) {
        let mut world = World { failing: failing.into_iter().map(device).collect(), silent: silent.into_iter().map(device).collect(), ..World::default() };
        let mut state = rollout(count, shares, max_failures);
        let mut lost = losses.iter().cycle();
        for now in (0..1700).step_by(11) {
            let before = state.clone();
            let (next, told) = step(&state, &world.seen, now);
            // Idempotent: a second operator, or the same one after a crash, decides the same.
            let (again, told_again) = step(&next, &world.seen, now);
            prop_assert_eq!(&again, &next);
            prop_assert!(told.iter().all(|t| told_again.contains(t)), "what may not have been told is told again");
            prop_assert_eq!(&step(&state, &world.seen, now), &(next.clone(), told.clone()));

            let new: Vec<_> = next.devices.keys().filter(|d| !before.devices.contains_key(*d)).collect();
            if !new.is_empty() {
                let wave = &before.waves[before.next_wave()];
                prop_assert!(new.iter().all(|device| wave.contains(device)));
                let mut earlier = before.waves[..before.next_wave()].iter().flatten().map(|device| &next.devices[device]);
                let settled = earlier.all(|p| p.verdict != Verdict::Waiting && now >= p.since + before.settle);
                prop_assert!(settled);
                let failed = next.count(Verdict::Failed);
                prop_assert!(failed * 1000 <= max_failures as usize * before.devices.len().max(1));
            }
            prop_assert!(told.iter().all(|told| next.devices.contains_key(&told.device)));
            if next.status == Status::Stopped {
                prop_assert!(told.is_empty() && next.too_many_failed());
            }
            state = next;
            for told in told {
                if !lost.next().copied().unwrap_or(false) {
                    world.tell(&told);
                }
            }
            world.devices_act();
        }
        prop_assert!(matches!(state.status, Status::Done | Status::Stopped));
        if state.status == Status::Done {
            prop_assert_eq!(state.devices.len(), count);
            prop_assert!(!state.too_many_failed());
        }
        // And back: every device has what it had.
        state.status = Status::Aborting;
        for now in 2000..2150 {
            let (next, told) = step(&state, &world.seen, now);
            state = next;
            for told in told {
                if !lost.next().copied().unwrap_or(false) {
                    world.tell(&told);
                }
            }
        }
        if losses.iter().any(|lost| !lost) {
            prop_assert_eq!(state.status, Status::Aborted);
            prop_assert!(world.seen.values().all(|seen| seen.desired.as_ref().is_none_or(|d| d.tasks.is_empty())));
        }
    }

    /// Two operators change a device's tasks at the same time: whoever comes second counts on, and a rollout never undoes the other's.
    #[test]
    fn two_operators_do_no_harm(when in 0u64..40, same_task in any::<bool>(), count in 1usize..6) {
        let mut world = World::default();
        let mut state = rollout(count, "50%,100%", 1000);
        let theirs = |tasks: &BTreeMap<String, Wanted>| {
            let mut tasks = tasks.clone();
            tasks.insert(if same_task { TASK.into() } else { "other".into() }, wanted("7.0.0"));
            tasks
        };
        for now in 0..120 {
            let (next, told) = step(&state, &world.seen, now);
            state = next;
            for told in &told {
 world.tell(told);
}
            if now == when {
                let seen = world.seen.get(&device(0)).cloned().unwrap_or_default();
                let revision = seen.next_revision(0).unwrap();
                let tasks = theirs(&seen.desired.map(|d| d.tasks).unwrap_or_default());
                world.tell(&Told { device: device(0), revision, tasks });
            }
            world.devices_act();
        }
        prop_assert_eq!(state.status, Status::Done);
        let desired = world.seen[&device(0)].desired.clone().unwrap();
        let key = if same_task { TASK } else { "other" };
        prop_assert_eq!(&desired.tasks[key], &wanted("7.0.0"));
        let highest = desired.revision;
        state.status = Status::Aborting;
        let aborted = world.run(state, 120, 140, |_| false);
        prop_assert_eq!(aborted.status, Status::Aborted);
        let desired = world.seen[&device(0)].desired.clone().unwrap();
        prop_assert_eq!(&desired.tasks[key], &wanted("7.0.0"));
        prop_assert!(desired.revision >= highest);
    }
}
