//! The decision: what a rollout does next. Pure.

use std::collections::BTreeMap;

use firmware_config::{Promote, Reported, TaskState, Wanted};

use super::{Progress, Rollout, Status, Verdict, base};
use crate::desired::{DeviceName, Seen};

/// A refusal that a device already reported before it was told says nothing about what it was told; after so many seconds it does.
const REFUSAL: u64 = 60;

/// A desired state to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// For this device.
    pub device: DeviceName,
    /// With this revision.
    pub revision: u64,
    /// All that it shall run.
    pub tasks: BTreeMap<String, Wanted>,
}

/// What comes next: the state to be written first, and then the desired states to be published. The same again, with nothing new at the
/// broker, gives the same again.
pub fn step(rollout: &Rollout, seen: &BTreeMap<DeviceName, Seen>, now: u64) -> (Rollout, Vec<Told>) {
    let mut next = rollout.clone();
    let nothing = Seen::default();
    let of = |device: &DeviceName| seen.get(device).unwrap_or(&nothing);
    let mut told = Vec::new();
    if matches!(rollout.status, Status::Aborting | Status::Aborted) {
        restore(&mut next, of, now, &mut told);
        return (next, told);
    }
    let wanted = |device: &DeviceName| rollout.wanted(device);
    for (device, progress) in &mut next.devices {
        let (verdict, reason) = rollout.judge(device, progress, of(device), now);
        if verdict != progress.verdict {
            (progress.verdict, progress.since) = (verdict, now);
        }
        progress.reason = reason;
    }
    if rollout.status != Status::Running {
        return (next, told);
    }
    // Told on paper, but the broker does not keep it: the laptop or the broker fell over in between.
    for (device, progress) in &mut next.devices {
        if progress.verdict != Verdict::Overtaken && !is_kept(of(device), progress) {
            if of(device).forged.is_some() {
                // Above what somebody put there in its place.
                match of(device).next_revision(progress.revision) {
                    Ok(revision) => progress.revision = revision,
                    Err(_) => continue,
                }
            }
            told.push(Told {
                device: device.clone(),
                revision: progress.revision,
                tasks: progress.tasks.clone(),
            });
        }
    }
    if next.too_many_failed() {
        next.status = Status::Stopped;
        next.reason = Some(format!(
            "{} of {} devices told have failed, at most {}.{} % may",
            next.count(Verdict::Failed),
            next.devices.len(),
            next.max_failures / 10,
            next.max_failures % 10
        ));
        // Nobody else is told anything, not even again.
        return (next, Vec::new());
    }
    let settled =
        |p: &Progress| p.verdict != Verdict::Waiting && now >= p.since.saturating_add(rollout.settle);
    if !next.devices.values().all(settled) {
        return (next, told);
    }
    let wave = next.next_wave();
    let Some(devices) = next.waves.get(wave).cloned() else {
        next.status = Status::Done;
        next.reason = None;
        return (next, told);
    };
    for device in devices.into_iter().filter(|device| !rollout.devices.contains_key(device)) {
        let (progress, publish) = begin(&device, of(&device), wanted(&device), &next.task, now);
        if publish {
            told.push(Told {
                device: device.clone(),
                revision: progress.revision,
                tasks: progress.tasks.clone(),
            });
        }
        next.devices.insert(device, progress);
    }
    (next, told)
}

/// A device's turn has come; whether it must be told.
fn begin(device: &DeviceName, seen: &Seen, wanted: Option<Wanted>, task: &str, now: u64) -> (Progress, bool) {
    let failed = |reason: String| Progress {
        before: BTreeMap::new(),
        revision: 0,
        tasks: BTreeMap::new(),
        told: now,
        verdict: Verdict::Overtaken,
        since: now,
        reason: Some(reason),
    };
    let Some(wanted) = wanted else { return (failed("its site has no such target".into()), false) };
    let (before, revision) = match base(device, seen).and_then(|before| Ok((before, seen.next_revision(0)?)))
    {
        Ok(ready) => ready,
        Err(reason) => return (failed(reason), false),
    };
    let mut tasks = before.clone();
    tasks.insert(task.into(), wanted);
    // Where it is told this already, that is enough.
    let current = seen.valid().filter(|desired| desired.tasks == tasks).map(|desired| desired.revision);
    let progress = Progress {
        before,
        revision: current.unwrap_or(revision),
        tasks,
        told: now,
        verdict: Verdict::Waiting,
        since: now,
        reason: None,
    };
    (progress, current.is_none())
}

/// Whether the broker keeps what a device was told, or something newer that says the same.
fn is_kept(seen: &Seen, progress: &Progress) -> bool {
    seen.valid().is_some_and(|desired| desired.revision >= progress.revision)
}

impl Rollout {
    /// What a device is told about the task.
    pub fn wanted(&self, device: &DeviceName) -> Option<Wanted> {
        let target = self.targets.get(device.site.as_str())?.clone();
        Some(Wanted { target, shadow: self.shadow.clone() })
    }

    fn judge(
        &self,
        device: &DeviceName,
        progress: &Progress,
        seen: &Seen,
        now: u64,
    ) -> (Verdict, Option<String>) {
        // It was never told; no report of it can change that.
        if progress.revision == 0 {
            return (progress.verdict, progress.reason.clone());
        }
        let wanted = self.wanted(device);
        if let Some(desired) = seen.valid().filter(|desired| desired.revision >= progress.revision)
            && desired.tasks.get(&self.task).map(|task| &task.target) != wanted.as_ref().map(|w| &w.target)
        {
            return (
                Verdict::Overtaken,
                Some(format!("revision {} of another operator stands", desired.revision)),
            );
        }
        let silent = now >= progress.told.saturating_add(self.patience);
        let Some(reported) = &seen.reported else {
            return if silent {
                (Verdict::Failed, Some("it has never reported".into()))
            } else {
                (Verdict::Waiting, None)
            };
        };
        if reported.revision < Some(progress.revision) {
            return match &reported.refused {
                Some(refused) if now >= progress.told.saturating_add(REFUSAL) => {
                    (Verdict::Failed, Some(format!("it refuses: {refused}")))
                }
                _ if silent => (Verdict::Failed, Some(format!("silent since {}", reported.at))),
                _ => (Verdict::Waiting, None),
            };
        }
        let sha256 = wanted.as_ref().map_or("", |wanted| wanted.target.sha256.as_str());
        self.outcome(reported, sha256, silent)
    }

    /// What a device that follows the revision makes of it.
    fn outcome(&self, reported: &Reported, sha256: &str, late: bool) -> (Verdict, Option<String>) {
        let Some(task) = reported.tasks.get(&self.task) else {
            return if late {
                (Verdict::Failed, Some("it says nothing of the task".into()))
            } else {
                (Verdict::Waiting, None)
            };
        };
        let failure = || task.failure.clone().unwrap_or_else(|| "it does not say why".into());
        let is_it = |plugin: &Option<firmware_config::ReportedPlugin>| {
            plugin.as_ref().is_some_and(|p| p.sha256 == sha256)
        };
        match task.state {
            TaskState::Active if is_it(&task.active) => (Verdict::Healthy, None),
            TaskState::Failed => (Verdict::Failed, Some(failure())),
            TaskState::Down => (Verdict::Failed, Some(format!("taken down: {}", failure()))),
            TaskState::Shadow => {
                let by_operator =
                    self.shadow.as_ref().is_some_and(|shadow| shadow.promote == Promote::Operator);
                let complete = task.shadow.is_some_and(|shadow| shadow.results >= shadow.of);
                if by_operator && complete && is_it(&task.candidate) {
                    (Verdict::Healthy, None)
                } else {
                    (Verdict::Waiting, None)
                }
            }
            _ if late => (Verdict::Failed, Some(format!("not done within {} s", self.patience))),
            _ => (Verdict::Waiting, None),
        }
    }
}

/// Puts back what each device was to run of this task, and leaves alone what others have changed since.
fn restore<'s>(next: &mut Rollout, of: impl Fn(&DeviceName) -> &'s Seen, now: u64, told: &mut Vec<Told>) {
    let task = next.task.clone();
    let targets = next.targets.clone();
    for (device, progress) in &mut next.devices {
        let seen = of(device);
        let set = |progress: &mut Progress, verdict, reason: Option<String>| {
            if progress.verdict != verdict {
                (progress.verdict, progress.since) = (verdict, now);
            }
            progress.reason = reason;
        };
        match progress.verdict {
            Verdict::Restored | Verdict::Overtaken => continue,
            Verdict::Restoring => {}
            _ => {
                // What the rollout set, unless the broker has forgotten it.
                let current = match seen.valid() {
                    Some(desired) if desired.revision >= progress.revision => {
                        let ours = targets.get(device.site.as_str());
                        if desired.tasks.get(&task).map(|wanted| &wanted.target) != ours {
                            let reason = format!("revision {} of another operator stands", desired.revision);
                            set(progress, Verdict::Overtaken, Some(reason));
                            continue;
                        }
                        desired.tasks.clone()
                    }
                    // Never told, in fact: what was before is there still.
                    Some(desired) if desired.tasks == progress.before => {
                        set(progress, Verdict::Restored, None);
                        continue;
                    }
                    _ => progress.tasks.clone(),
                };
                let revision = match seen.next_revision(progress.revision) {
                    Ok(revision) => revision,
                    Err(reason) => {
                        set(progress, Verdict::Overtaken, Some(reason));
                        continue;
                    }
                };
                let mut tasks = current;
                match progress.before.get(&task) {
                    Some(wanted) => drop(tasks.insert(task.clone(), wanted.clone())),
                    None => drop(tasks.remove(&task)),
                }
                (progress.tasks, progress.revision) = (tasks, revision);
                set(progress, Verdict::Restoring, None);
            }
        }
        if is_kept(seen, progress) {
            set(progress, Verdict::Restored, None);
        } else {
            let (revision, tasks) = (progress.revision, progress.tasks.clone());
            told.push(Told { device: device.clone(), revision, tasks });
        }
    }
    if next.count(Verdict::Restoring) == 0 {
        next.status = Status::Aborted;
    }
}

#[cfg(test)]
mod tests;
