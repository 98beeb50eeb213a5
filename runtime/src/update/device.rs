//! A device that follows its desired state: one step after the other, each of which can be broken off at any instant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use firmware_config::{
    Desired, MetadataVersions, REPORTED_SCHEMA, Reported, ReportedPlugin, ReportedTask, TargetRef, TaskState,
    TopicLevel,
};

use super::trust::utc;
use super::{
    Action, Downloads, Progress, Repository, Source, Standing, Trust, UpdateError, fetch_backbone,
    lacking_backbone, plan,
};
use crate::Error;
use crate::gate::GateLimits;
use crate::infer::{BUILD, Loader};
use crate::plugin::Plugin;
use crate::slots::{Placed, ShadowRun, Slot, Slots, State};

/// What a device is, and how it proves plugins.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its site.
    pub site: TopicLevel,
    /// Its name.
    pub device: TopicLevel,
    /// What loads plugins, for their golden cases.
    pub loader: Arc<Loader>,
    /// Bytes that a backbone which is fetched leaves free on the disk.
    pub keep_free: u64,
    /// What the golden gate allows.
    pub gate: GateLimits,
}

/// What comes after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// All is as wanted, or cannot be: nothing to do before something changes.
    Rest,
    /// Something that may pass kept it: again, a while later.
    Again,
}

/// What a task is in the middle of.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Fetching(Progress),
    Checking,
}

/// A device's updates.
pub struct Updates {
    place: Place,
    trust: Trust,
    source: Arc<dyn Source>,
    slots: Slots,
    downloads: Downloads,
    /// The payload that came last and is not decided about.
    heard: Option<Vec<u8>>,
    /// The metadata that was verified last.
    repository: Option<Arc<Repository>>,
    /// Why the desired state that came last is not followed.
    refused: Option<String>,
    /// What keeps the device from acting on the one that it follows.
    hindered: Option<String>,
    /// What keeps a task from being as wanted, in a sentence.
    troubles: BTreeMap<String, String>,
    /// Digests that are not tried again before another desired state comes, by task.
    given_up: BTreeMap<String, String>,
    /// Tasks whose failure on the disk is from before this desired state.
    fresh: BTreeSet<String>,
    stage: Option<(String, Stage)>,
    /// Whether the program is to end: what takes long is then broken off.
    stopping: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Lets whoever classifies take up what has gone live, before it is reported.
    switched: Arc<dyn Fn() + Send + Sync>,
}

impl Updates {
    /// Nothing is fetched before the first [`Self::step`].
    pub fn new(
        place: Place,
        trust: Trust,
        source: Arc<dyn Source>,
        slots: Slots,
        downloads: Downloads,
    ) -> Self {
        Self {
            place,
            trust,
            source,
            slots,
            downloads,
            heard: None,
            repository: None,
            refused: None,
            hindered: None,
            troubles: BTreeMap::new(),
            given_up: BTreeMap::new(),
            fresh: BTreeSet::new(),
            stage: None,
            stopping: Arc::new(|| false),
            switched: Arc::new(|| ()),
        }
    }

    /// Breaks off what takes long where `stopping` says that the program is to end.
    #[must_use]
    pub fn stopping(self, stopping: Arc<dyn Fn() -> bool + Send + Sync>) -> Self {
        Self { stopping, ..self }
    }

    /// Calls `switched` when another plugin has gone live, or none has, and before that is reported.
    #[must_use]
    pub fn switched(self, switched: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { switched, ..self }
    }

    /// A desired state has come; the next step decides about it.
    pub fn hear(&mut self, payload: Vec<u8>) {
        self.heard = Some(payload);
    }

    /// Takes other limits of the golden gate from now on.
    pub fn set_gate(&mut self, gate: GateLimits) {
        self.place.gate = gate;
    }

    /// Looks at the repository, decides about what was heard, and brings the slots to what is wanted, as far as that goes. `told`
    /// hears where it stands whenever that has changed, and ends the step by false.
    ///
    /// `clock` is Unix time in seconds.
    pub fn step(&mut self, clock: i64, told: &mut dyn FnMut(Reported) -> bool) -> After {
        match self.trust.refresh(&self.source, clock) {
            Ok(repository) => {
                self.repository = Some(Arc::new(repository));
                self.hindered = None;
            }
            Err(error) => {
                tracing::warn!(%error, "the signed repository was not taken");
                self.hindered = Some(error.to_string());
                told(self.reported(clock));
                // A repository that lies today may be mended tomorrow.
                return After::Again;
            }
        }
        self.decide(clock);
        let Some(desired) = self.trust.desired() else {
            told(self.reported(clock));
            return After::Rest;
        };
        if let Some(refusal) = expired(&desired, self.trust.time(clock)) {
            self.hindered = Some(refusal);
            told(self.reported(clock));
            return After::Rest;
        }
        let after = self.work(&desired, clock, told);
        told(self.reported(clock));
        after
    }

    fn decide(&mut self, clock: i64) {
        let (Some(payload), Some(repository)) = (self.heard.take(), &self.repository) else { return };
        let names = [&self.place.site, &self.place.device];
        match self.trust.follow(&payload, repository, names, clock) {
            Ok(new) => {
                self.refused = None;
                if new {
                    let desired = self.trust.desired();
                    let (revision, tasks) =
                        desired.map_or((0, Vec::new()), |d| (d.revision, d.tasks.into_keys().collect()));
                    tracing::info!(revision, "a new desired state is followed");
                    self.given_up.clear();
                    self.fresh = tasks.into_iter().collect();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a desired state was refused");
                self.refused = Some(error.to_string());
            }
        }
    }

    /// Does what the plan says until nothing is left of it.
    fn work(&mut self, desired: &Desired, clock: i64, told: &mut dyn FnMut(Reported) -> bool) -> After {
        self.troubles.clear();
        let mut postponed = BTreeSet::new();
        loop {
            let standings = match self.standings() {
                Ok(standings) => standings,
                Err(error) => {
                    tracing::error!(%error, "the plugins of this device cannot be read");
                    self.hindered = Some(error.to_string());
                    return After::Again;
                }
            };
            let plan = plan(desired, &standings);
            let Some((task, action)) = plan.into_iter().find(|(task, _)| !postponed.contains(task)) else {
                break;
            };
            let wanted = desired.tasks.get(&task).map(|wanted| wanted.target.sha256.clone());
            if let Err(error) = self.act(&task, &action, clock, told) {
                tracing::warn!(task, %error, "a plugin did not go live");
                self.troubles.insert(task.clone(), error.to_string());
                let passing = match &error {
                    Error::Update(error) => error.is_passing(),
                    error => !error.is_bad_input(),
                };
                match wanted {
                    Some(digest) if !passing => drop(self.given_up.insert(task.clone(), digest)),
                    _ => drop(postponed.insert(task.clone())),
                }
            }
            self.fresh.remove(&task);
            self.stage = None;
            if !told(self.reported(clock)) {
                return After::Again;
            }
        }
        let wanted: Vec<&TargetRef> = desired.tasks.values().map(|wanted| &wanted.target).collect();
        if let Err(error) = self.downloads.clean(&wanted) {
            tracing::warn!(%error, "what is left of older downloads cannot be removed");
        }
        if let Err(error) = self.slots.remove_unused_backbones() {
            tracing::warn!(%error, "backbones that no plugin needs any more stay on the disk");
        }
        if postponed.is_empty() { After::Rest } else { After::Again }
    }

    fn standings(&self) -> Result<BTreeMap<String, Standing>, Error> {
        let one = |Slot { name, state }: Slot| -> Result<_, Error> {
            let state = state?;
            let digest = |plugin: Option<&Placed>| plugin.map(|plugin| plugin.sha256.clone());
            let failed = failure(&state).map(|(plugin, _)| plugin).filter(|_| !self.fresh.contains(&name));
            let standing = Standing {
                active: digest(state.active.as_ref()),
                candidate: digest(state.next()),
                previous: digest(state.previous.as_ref()),
                shadow: state.shadow.as_ref().map(|shadow| shadow.rule.clone()),
                failed: digest(failed),
            };
            Ok((name, standing))
        };
        let mut standings: BTreeMap<_, Standing> =
            self.slots.list()?.into_iter().map(one).collect::<Result<_, _>>()?;
        // Also of a task that never had a plugin here, and so no slots.
        for (task, digest) in &self.given_up {
            standings.entry(task.clone()).or_default().failed = Some(digest.clone());
        }
        Ok(standings)
    }

    fn act(
        &mut self,
        task: &str,
        action: &Action,
        clock: i64,
        told: &mut dyn FnMut(Reported) -> bool,
    ) -> Result<(), Error> {
        tracing::info!(task, ?action, "update");
        match action {
            Action::Install(target) => return self.install(task, target, clock, told),
            Action::Shadow(shadow) => {
                self.bring_backbone(task, clock, told)?;
                return self.slots.shadow(task, shadow.clone());
            }
            Action::Activate => {
                self.bring_backbone(task, clock, told)?;
                self.stage = Some((task.into(), Stage::Checking));
                told(self.reported(clock));
                let Place { loader, gate, .. } = &self.place;
                let go_on = || !(self.stopping)();
                self.slots.activate_while(task, loader, gate, &go_on).map(drop)?;
            }
            Action::Rollback => self.slots.rollback(task).map(drop)?,
            Action::TakeDown => {
                self.slots.retire(task, "the operator does not want it on this device any more")?;
            }
        }
        (self.switched)();
        Ok(())
    }

    fn install(
        &mut self,
        task: &str,
        target: &TargetRef,
        clock: i64,
        told: &mut dyn FnMut(Reported) -> bool,
    ) -> Result<(), Error> {
        let Some(repository) = &self.repository else { return Ok(()) };
        let file = repository.target(&self.place.site, target)?;
        let (source, downloads) = (self.source.clone(), self.downloads.clone());
        let path = downloads.fetch(&*source, target, &file, &mut self.fetching(task, clock, told))?;
        // Before it goes into a slot: it would take the place of the other task's candidate.
        let found = Plugin::read(&path)?.0.manifest.task.name;
        if found != task {
            return Err(UpdateError::NoTarget {
                target: target.name.clone(),
                site: self.place.site.to_string(),
                detail: format!("it holds a plugin of task {found}, and one of {task} is wanted"),
            }
            .into());
        }
        self.slots.install(&path, Some(target.clone()))?;
        Ok(())
    }

    /// Fetches the backbone of the plugin that is to run, where this device lacks it and the repository has it.
    fn bring_backbone(
        &mut self,
        task: &str,
        clock: i64,
        told: &mut dyn FnMut(Reported) -> bool,
    ) -> Result<(), Error> {
        let Some(repository) = self.repository.clone() else { return Ok(()) };
        let (slots, next) = (self.slots.clone(), self.slots.state(task)?);
        let Some(placed) = next.as_ref().and_then(State::next) else { return Ok(()) };
        let Some(target) = lacking_backbone(&repository, &slots, placed, self.place.loader.backbone()) else {
            return Ok(());
        };
        let keep_free = self.place.keep_free;
        fetch_backbone(&repository, &slots, &target, keep_free, &mut self.fetching(task, clock, told))
    }

    /// Tells how a fetch goes on, a hundred times at most; what is in the slots is looked up once.
    fn fetching<'a>(
        &'a mut self,
        task: &'a str,
        clock: i64,
        told: &'a mut dyn FnMut(Reported) -> bool,
    ) -> impl FnMut(Progress) -> bool + 'a {
        let (slots, mut percent) = (self.slots.list().unwrap_or_default(), u64::MAX);
        move |progress| {
            let now = 100 * progress.bytes / progress.of.max(1);
            if now == percent {
                return true;
            }
            percent = now;
            self.stage = Some((task.into(), Stage::Fetching(progress)));
            told(self.report(&slots, clock))
        }
    }

    /// Where everything stands.
    pub fn reported(&self, clock: i64) -> Reported {
        self.report(&self.slots.list().unwrap_or_default(), clock)
    }

    fn report(&self, slots: &[Slot], clock: i64) -> Reported {
        let desired = self.trust.desired();
        let mut tasks = BTreeMap::new();
        for Slot { name, state } in slots {
            let reported = match state {
                Ok(state) => self.task(name, state, desired.as_ref()),
                Err(error) => ReportedTask {
                    failure: Some(error.to_string()),
                    ..self.task(name, &State::default(), None)
                },
            };
            tasks.insert(name.clone(), reported);
        }
        for task in desired.iter().flat_map(|desired| desired.tasks.keys()) {
            if !tasks.contains_key(task) {
                tasks.insert(task.clone(), self.task(task, &State::default(), desired.as_ref()));
            }
        }
        Reported {
            schema: REPORTED_SCHEMA.into(),
            site: self.place.site.clone(),
            device: self.place.device.clone(),
            build: BUILD.into(),
            at: utc(clock),
            revision: desired.map(|desired| desired.revision),
            refused: self.refused.clone().or_else(|| self.hindered.clone()),
            metadata: self.metadata(),
            tasks,
        }
    }

    fn metadata(&self) -> Option<MetadataVersions> {
        self.repository.as_deref().map(Repository::versions)
    }

    fn task(&self, task: &str, state: &State, desired: Option<&Desired>) -> ReportedTask {
        let wanted =
            desired.and_then(|desired| desired.tasks.get(task)).map(|wanted| wanted.target.sha256.as_str());
        let active = state.active.as_ref().map(|plugin| plugin.sha256.as_str());
        let stage = self.stage.as_ref().filter(|(name, _)| name == task).map(|(_, stage)| *stage);
        let failed = failure(state).filter(|(plugin, _)| Some(plugin.sha256.as_str()) == wanted);
        let standing = match stage {
            Some(Stage::Fetching(_)) => TaskState::Fetching,
            Some(Stage::Checking) => TaskState::Checking,
            None if wanted.is_some() && wanted == active => TaskState::Active,
            None if failed.is_some() || self.given_up.contains_key(task) => TaskState::Failed,
            None if state.shadow.is_some() && state.candidate.is_some() => TaskState::Shadow,
            None if wanted.is_some() && desired.is_some() => TaskState::Fetching,
            None if active.is_some() => TaskState::Active,
            None => TaskState::Down,
        };
        let failure = self.troubles.get(task).cloned();
        let failure = failure.or_else(|| failed.map(|(_, reason)| reason.to_owned()));
        let progress = match stage {
            Some(Stage::Fetching(progress)) => Some(progress.bytes as f64 / progress.of.max(1) as f64),
            _ => None,
        };
        ReportedTask {
            state: standing,
            active: state.active.as_ref().map(reported),
            candidate: state.candidate.as_ref().map(reported),
            previous: state.previous.as_ref().map(reported),
            progress,
            failure: failure.or_else(|| state.down.as_ref().map(|down| down.reason.clone())),
            shadow: state.shadow.as_ref().map(ShadowRun::report),
        }
    }
}

/// What did not pass last on this device, and why.
fn failure(state: &State) -> Option<(&Placed, &str)> {
    let failed = state.failed.as_ref().map(|failed| (&failed.plugin, failed.reason.as_str()));
    let down =
        state.down.as_ref().filter(|down| down.by_fault).map(|down| (&down.plugin, down.reason.as_str()));
    failed.or(down)
}

fn reported(plugin: &Placed) -> ReportedPlugin {
    let target = plugin.target.as_ref().map(|target| target.name.clone());
    ReportedPlugin { task: plugin.task.clone(), sha256: plugin.sha256.clone(), target }
}

fn expired(desired: &Desired, now: i64) -> Option<String> {
    let now = utc(now);
    (desired.expires < now).then(|| {
        format!(
            "the desired state of revision {} was good until {}, and it is {now} by this device's clock; publish it again",
            desired.revision, desired.expires
        )
    })
}
