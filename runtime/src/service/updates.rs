//! The part of the service that follows the operator's desired state ([`crate::update`]).
//!
//! Two threads: one holds the connection to the broker, the other fetches, proves and switches plugins, one task at a time. The
//! thread that works on series is never waited for: it takes up a plugin that has gone live as it does one that was activated by
//! hand.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use firmware_config::device::{self, Device, Source as Address};
use firmware_config::{Reported, TopicLevel};

use super::core::{Core, Queue, locked};
use super::{ServiceError, spawn};
use crate::Error;
use crate::gate::GateLimits;
use crate::infer::Loader;
use crate::publish::follow::{self, Follow, Handle};
use crate::publish::{Patience, endpoint, topic};
use crate::slots::Slots;
use crate::update::{After, Downloads, Mqtt, Place, Source, Trust, Updates, open_source};

/// The pause after what may pass; doubled each time.
const PAUSE: Duration = Duration::from_secs(5);

/// The pause grows no longer than this.
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// A stop waits so long for each of the threads.
const GRACE: Duration = Duration::from_secs(5);

/// A stop is noticed within this time.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The threads that follow the desired state.
pub(super) struct Following {
    handle: Handle,
    /// How often to look at the repository, and what the golden gate allows; from the next step on.
    policy: Arc<Mutex<(Duration, GateLimits)>>,
    threads: [JoinHandle<()>; 2],
}

impl Following {
    /// Begins to follow, where the configuration names a trusted root and a source.
    pub fn start(
        device: &Device,
        slots: &Slots,
        loader: &Arc<Loader>,
        core: &Arc<Core>,
        stopping: &Arc<Queue>,
    ) -> Result<Option<Self>, ServiceError> {
        let (Some(root), Some(address)) = (&device.updates.root, &device.updates.source) else {
            return Ok(None);
        };
        let folder = device.data_dir.join("updates");
        let trust = Trust::open(&folder, root, &device.site).map_err(Error::from)?;
        let downloads = Downloads::open(&folder.join("downloads")).map_err(Error::from)?;
        let (heard, hear) = mpsc::channel();
        let (follow, handle) = connection(device, true, heard)?;
        let source = source(address, &device.updates, handle.clone(), &device.site)?;
        let place = Place {
            site: device.site.clone(),
            device: device.device.clone(),
            loader: Arc::clone(loader),
            keep_free: device.store.min_free.0,
            gate: (&device.gate).into(),
        };
        let (stop, live) = (stopping.clone(), core.clone());
        let working = core.clone();
        let switched = move || match live.tasks.refresh() {
            Ok(_) => live.session.get().into_iter().for_each(super::Handle::announce),
            Err(error) => tracing::error!(%error, "the plugins cannot be listed"),
        };
        let updates = Updates::new(place, trust, source, slots.clone(), downloads)
            .stopping(Arc::new(move || {
                // Asked before each slice of a golden case, which can wait.
                !working.stand_back() || stop.is_stopping()
            }))
            .switched(Arc::new(switched));
        let machine = |source| ServiceError::Machine { what: "network side", source };
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(machine)?;
        let connected = spawn(core, "updates' broker", move |_| executor.block_on(follow.run()))?;
        let policy = Arc::new(Mutex::new(policy(device)));
        let (stopping, of_worker, say) = (stopping.clone(), policy.clone(), handle.clone());
        let worker = spawn(core, "updates", move |core| {
            Worker { core, updates, stopping: &stopping, policy: &of_worker, say: &say }.run(&hear);
        })?;
        Ok(Some(Self { handle, policy, threads: [worker, connected] }))
    }

    /// Takes over what can be changed while it runs.
    pub fn reload(&self, device: &Device) {
        *locked(&self.policy) = policy(device);
    }

    /// What is under way ends at its next step; what was fetched stays. A server that says nothing is not waited for.
    pub fn stop(self) {
        let [worker, connected] = self.threads;
        let ends = |thread: &JoinHandle<()>, until: Instant| {
            while !thread.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(10));
            }
            thread.is_finished()
        };
        // The connection outlives the worker, which may wait for its answer.
        if !ends(&worker, Instant::now() + GRACE) {
            tracing::warn!("the fetch in hand is left; the next start goes on with it");
        }
        self.handle.shut_down();
        ends(&connected, Instant::now() + GRACE);
    }
}

fn policy(device: &Device) -> (Duration, GateLimits) {
    (device.updates.interval, (&device.gate).into())
}

/// The connection to the broker for updates; with `listen` it hears the desired state.
pub fn connection(
    device: &Device,
    listen: bool,
    heard: mpsc::Sender<Vec<u8>>,
) -> Result<(Follow, Handle), ServiceError> {
    let (site, name) = (&device.site, &device.device);
    // Beside the service's own, a command's must have another name.
    let suffix = if listen { "updates".into() } else { format!("updates-{}", std::process::id()) };
    let options = follow::Options {
        endpoint: endpoint(&device.mqtt).map_err(Error::from)?,
        client_id: format!("scanside-{site}-{name}-{suffix}"),
        keep_alive: device.mqtt.keep_alive,
        listen: listen.then(|| topic(site, name, "desired")),
        report: topic(site, name, "reported"),
        patience: Patience::default(),
        seed: u64::from(std::process::id()),
    };
    Ok(Follow::new(options, heard))
}

/// The repository that the configuration names.
fn source(
    address: &Address,
    updates: &device::Updates,
    handle: Handle,
    site: &TopicLevel,
) -> Result<Arc<dyn Source>, ServiceError> {
    let source = open_source(address, updates.ca.as_deref()).map_err(Error::from)?;
    Ok(source.unwrap_or_else(|| Arc::new(Mqtt::new(handle, site))))
}

struct Worker<'a> {
    core: &'a Core,
    updates: Updates,
    stopping: &'a Queue,
    policy: &'a Mutex<(Duration, GateLimits)>,
    say: &'a Handle,
}

impl Worker<'_> {
    fn run(mut self, heard: &Receiver<Vec<u8>>) {
        let (mut due, mut pause) = (Instant::now(), PAUSE);
        let mut said = None;
        while !self.stopping.is_stopping() {
            match heard.recv_timeout(LOOK_EVERY.min(due.saturating_duration_since(Instant::now()))) {
                Ok(payload) => {
                    // Only the last one counts.
                    self.updates.hear(heard.try_iter().last().unwrap_or(payload));
                    (due, pause) = (Instant::now(), PAUSE);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if Instant::now() < due {
                continue;
            }
            let (interval, gate) = *locked(self.policy);
            self.updates.set_gate(gate);
            let (stopping, say) = (self.stopping, self.say);
            let mut tell = |reported: Reported| {
                // What has not changed but for its time is not said again.
                let same = said.as_ref().is_some_and(|said: &Reported| {
                    Reported { at: reported.at.clone(), ..said.clone() } == reported
                });
                if !same {
                    say.report(serde_json::to_vec(&reported).unwrap_or_default());
                    said = Some(reported);
                }
                !stopping.is_stopping()
            };
            let seconds = self.core.clock.wall().div_euclid(1000);
            match self.updates.step(seconds, &mut tell) {
                After::Rest => {
                    pause = PAUSE;
                    due = Instant::now() + interval;
                }
                After::Again => {
                    due = Instant::now() + pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}
