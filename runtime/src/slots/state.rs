//! What `slots.json` says of a task's plugins, and how one state follows from another.

use firmware_config::{Shadow, ShadowReport, TargetRef, Task, Utc};
use serde::{Deserialize, Serialize};

use super::shadow::{Comparison, Statistics};
use crate::gate::Checked;

/// The value of [`State::schema`] that this build writes and reads.
pub const SCHEMA: &str = "scanside.slots/1";

/// The plugins of one task. A field that is not known is an error, as a flipped bit must not empty a slot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`SCHEMA`].
    pub schema: String,
    /// What waits for activation, or runs in the shadow.
    pub candidate: Option<Placed>,
    /// What classifies.
    pub active: Option<Placed>,
    /// What classified before, for [`super::Slots::rollback`].
    pub previous: Option<Placed>,
    /// The last candidate that did not pass, until another is installed.
    pub failed: Option<Failed>,
    /// What was active and was taken down, until something is active again.
    pub down: Option<Down>,
    /// When and where the active plugin last passed its golden cases.
    pub checked: Option<Checked>,
    /// How the candidate does beside the active plugin.
    pub shadow: Option<ShadowRun>,
}

/// A plugin in a slot; its file is named by its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placed {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Name and version of its task.
    pub task: Task,
    /// The signed target that it came from; none where it is unsigned.
    pub target: Option<TargetRef>,
}

/// A candidate that did not pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failed {
    /// Which.
    pub plugin: Placed,
    /// Why, in one sentence.
    pub reason: String,
    /// When.
    pub at: Utc,
}

/// A plugin that was taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Down {
    /// Which; its file is kept, so that it can be activated again.
    pub plugin: Placed,
    /// Why, in one sentence.
    pub reason: String,
    /// When.
    pub at: Utc,
    /// Whether it had failed, and not merely been wanted no longer: somebody should see to it, and series for it are refused.
    pub by_fault: bool,
}

/// A candidate beside the active plugin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowRun {
    /// For how long, and what it must show.
    pub rule: Shadow,
    /// What it has shown.
    pub statistics: Statistics,
}

impl ShadowRun {
    /// As a device reports it.
    pub fn report(&self) -> ShadowReport {
        self.statistics.report(self.rule.results)
    }
}

/// Why a state does not change as it was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unchanged {
    /// What was looked at is not in its slot any more.
    Replaced,
    /// There is nothing in the slot that it takes.
    Empty,
    /// There is nothing to compare a candidate with.
    NoActive,
}

impl Default for State {
    fn default() -> Self {
        Self {
            schema: SCHEMA.into(),
            candidate: None,
            active: None,
            previous: None,
            failed: None,
            down: None,
            checked: None,
            shadow: None,
        }
    }
}

impl State {
    /// Every plugin whose file is kept, with the name of its slot.
    pub fn placed(&self) -> impl Iterator<Item = (&'static str, &Placed)> {
        let down = self.down.as_ref().map(|down| &down.plugin);
        let slots = [
            ("active", self.active.as_ref()),
            ("candidate", self.candidate.as_ref()),
            ("previous", self.previous.as_ref()),
            ("down", down),
        ];
        slots.into_iter().filter_map(|(name, placed)| Some((name, placed?)))
    }

    /// What [`super::Slots::activate`] would activate: the candidate, or where none waits what was taken down.
    pub fn next(&self) -> Option<&Placed> {
        self.candidate.as_ref().or(self.down.as_ref().map(|down| &down.plugin))
    }

    /// Checks what types cannot state; the answer says what is wrong.
    pub(super) fn validate(&self, task: &str) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("schema is {:?}, expected {SCHEMA:?}", self.schema));
        }
        let failed = self.failed.as_ref().map(|failed| ("failed", &failed.plugin));
        for (slot, placed) in self.placed().chain(failed) {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            // It becomes a file name.
            if placed.sha256.len() != 64 || !placed.sha256.bytes().all(hex) {
                return Err(format!("{slot}.sha256 is {:?}, expected 64 hexadecimal digits", placed.sha256));
            }
            if placed.task.name != task {
                return Err(format!("{slot} is a plugin of task {}, expected {task}", placed.task.name));
            }
            placed.task.validate().map_err(|invalid| format!("{slot}: {invalid}"))?;
            let target = placed.target.as_ref().map_or(Ok(()), TargetRef::validate);
            target.map_err(|invalid| format!("{slot}: {invalid}"))?;
        }
        if self.active.is_some() && self.down.is_some() {
            return Err("it has an active plugin and one that was taken down".into());
        }
        Ok(())
    }

    pub(super) fn install(&mut self, plugin: Placed) {
        self.candidate = Some(plugin);
        (self.failed, self.shadow) = (None, None);
    }

    /// `plugin`, which was [`Self::next`] and has passed, becomes active.
    pub(super) fn activate(&mut self, plugin: &Placed, checked: Checked) -> Result<(), Unchanged> {
        if self.next() != Some(plugin) {
            return Err(Unchanged::Replaced);
        }
        if self.candidate.as_ref() == Some(plugin) {
            (self.candidate, self.shadow, self.failed) = (None, None, None);
        }
        let before = self.active.replace(plugin.clone());
        // The same file under another target is no way back.
        if let Some(before) = before.filter(|before| before.sha256 != plugin.sha256) {
            self.previous = Some(before);
        }
        (self.down, self.checked) = (None, Some(checked));
        Ok(())
    }

    /// `plugin`, which was [`Self::next`], has not passed. What was taken down stays down.
    pub(super) fn fail(&mut self, plugin: &Placed, reason: &str, at: Utc) -> Result<(), Unchanged> {
        if self.candidate.as_ref() == Some(plugin) {
            (self.candidate, self.shadow) = (None, None);
            self.failed = Some(Failed { plugin: plugin.clone(), reason: reason.into(), at });
            return Ok(());
        }
        match &mut self.down {
            Some(down) if down.plugin == *plugin => {
                (down.reason, down.at, down.by_fault) = (reason.into(), at, true);
                Ok(())
            }
            _ => Err(Unchanged::Replaced),
        }
    }

    pub(super) fn rollback(&mut self) -> Result<(), Unchanged> {
        let back = self.previous.take().ok_or(Unchanged::Empty)?;
        // What was taken down is nothing to come back to.
        self.previous = self.active.replace(back);
        (self.down, self.checked) = (None, None);
        // The candidate is to be compared with what runs.
        if let Some(shadow) = &mut self.shadow {
            shadow.statistics = Statistics::default();
        }
        Ok(())
    }

    pub(super) fn take_down(&mut self, reason: &str, at: Utc, by_fault: bool) -> Result<(), Unchanged> {
        let plugin = self.active.take().ok_or(Unchanged::Empty)?;
        self.down = Some(Down { plugin, reason: reason.into(), at, by_fault });
        self.checked = None;
        if let Some(shadow) = &mut self.shadow {
            shadow.statistics = Statistics::default();
        }
        Ok(())
    }

    /// Begins to run the candidate in the shadow, or goes on where it does so by the same rule.
    pub(super) fn begin_shadow(&mut self, rule: Shadow) -> Result<(), Unchanged> {
        if self.candidate.is_none() {
            return Err(Unchanged::Empty);
        }
        if self.active.is_none() {
            return Err(Unchanged::NoActive);
        }
        // Figures of another rule are of another measure.
        if self.shadow.as_ref().is_none_or(|shadow| shadow.rule != rule) {
            self.shadow = Some(ShadowRun { rule, statistics: Statistics::default() });
        }
        Ok(())
    }

    /// Counts a series that `candidate` and `active` have classified.
    pub(super) fn count(
        &mut self,
        candidate: &str,
        active: &str,
        comparison: &Comparison,
    ) -> Result<&ShadowRun, Unchanged> {
        let is = |slot: &Option<Placed>, sha256: &str| slot.as_ref().is_some_and(|p| p.sha256 == sha256);
        if !is(&self.candidate, candidate) || !is(&self.active, active) {
            return Err(Unchanged::Replaced);
        }
        let shadow = self.shadow.as_mut().ok_or(Unchanged::Replaced)?;
        shadow.statistics.add(comparison);
        Ok(shadow)
    }
}
