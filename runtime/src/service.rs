//! The scanner-side service: series in by DICOM, results out by MQTT, nothing lost.
//!
//! ```text
//! listener ─ intake ─→ store (durable, then acknowledged) ─→ early: slices encoded as they come
//!               └────→ assembler: which series is complete ─→ store: job ─→ jobs: rules, tasks, results
//!                                                                 session ←─ store: outbox ←─┘
//! ```
//!
//! Whatever must outlive a power cut is in the [`crate::store`]; what is only in memory (which slices are encoded, which
//! associations run) can be lost at any time and costs time, no result. Each part is a thread or a few, and tells the
//! next one; [`Service`] starts and ends them in order.

mod assembler;
mod checks;
pub mod clock;
mod core;
pub mod early;
mod health;
pub mod http;
mod intake;
mod jobs;
pub mod machine;
pub mod notify;
mod preliminary;
mod series;
mod shadow;
mod studies;
pub mod tasks;
pub mod updates;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use firmware_config::device::{self, Changes, Device, Listen, Timeout};

use self::assembler::Call;
use self::checks::Checks;
use self::clock::{Clock, Steadiness};
use self::core::{Core, Queue, locked};
use self::early::{Early, Encoders};
pub use self::health::Health;
pub use self::http::{Inference, Snapshot};
use self::intake::Intake;
use self::shadow::Shadows;
use self::tasks::Tasks;
use self::updates::Following;
use crate::Error;
use crate::backbone::Backbone;
use crate::infer::{BUILD, Loader};
use crate::ingest::assembly::{Assembly, Pending, Policy};
use crate::ingest::listener::{ListenError, Listener, Options, Tls};
use crate::publish::session::{self, Handle, Session};
use crate::publish::{State, device_key};
use crate::result::rfc3339;
use crate::slots::Slots;
use crate::store::{Limits, Store};

/// New plugins are looked for so often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// What is old is deleted at least so often, and more often where it is kept for a short time only.
const SWEEP_EVERY: Duration = Duration::from_mins(5);
/// Associations may go on for so long after the service was told to stop; scanners send the rest again.
const ASSOCIATIONS_GRACE: Duration = Duration::from_secs(5);
/// The broker is given so long to take what is on its way.
const BROKER_GRACE: Duration = Duration::from_secs(5);

/// Why the service could not start, in one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A part of it.
    #[error(transparent)]
    Part(#[from] Error),
    /// The DICOM listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// `/healthz` and `/metrics`.
    #[error(transparent)]
    Http(#[from] http::HttpError),
    /// The machine has no threads or sockets left.
    #[error("the service cannot start its {what}: {source}")]
    Machine {
        /// Which part.
        what: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl ServiceError {
    /// Whether the configuration is at fault (exit code 2), not the machine (exit code 1).
    pub fn is_bad_input(&self) -> bool {
        match self {
            Self::Part(error) => error.is_bad_input(),
            Self::Listen(error) => error.is_bad_input(),
            Self::Http(_) => true,
            Self::Machine { .. } => false,
        }
    }
}

/// A running service.
pub struct Service {
    device: Device,
    core: Arc<Core>,
    listener: Option<Listener<Intake>>,
    encoders: Option<Encoders>,
    calls: Sender<Call>,
    assembler: Option<JoinHandle<()>>,
    worker: Option<JoinHandle<()>>,
    caretaker: Option<JoinHandle<()>>,
    shadow: Option<JoinHandle<()>>,
    following: Option<Following>,
    session: Handle,
    broker: Option<JoinHandle<()>>,
    stopping: Arc<Queue>,
    retention: Arc<Mutex<Duration>>,
}

impl Service {
    /// Opens the store, loads the tasks, and begins to listen, to work and to publish.
    ///
    /// # Errors
    /// Where the configuration names what cannot be used, or the machine fails; nothing then runs.
    pub fn start(device: Device) -> Result<Self, ServiceError> {
        let clock = Clock::start();
        let listen = listen_options(&device)?;
        let key = if device.publishes_plain_uids() { None } else { Some(make_key(&device)?) };
        let (store, recovery) =
            Store::open(&device.data_dir.join("store"), limits(&device.store)).map_err(Error::from)?;
        tracing::info!(?recovery, "store opened");
        for path in &recovery.missing {
            tracing::error!(path = %path.display(), "an acknowledged instance's file is gone: check the disk");
        }
        let store = Arc::new(store);
        let pending = pending(&store)?;

        let slots = Slots::new(&device.data_dir).signed_only(device.updates.root.is_some());
        let loader = Arc::new(Loader::of(&device));
        let tasks = Tasks::new(slots.clone(), Arc::clone(&loader), &device.tasks);
        tasks.refresh()?;
        if tasks.current().is_empty() {
            check_backbone(&device)?;
            tracing::warn!("no task runs: install a plugin with `scanside plugin install` and `activate`");
        }
        let core = Arc::new(Core {
            site: device.site.clone(),
            device: device.device.clone(),
            key,
            store: store.clone(),
            tasks,
            early: Early::default(),
            clock,
            preliminary: AtomicBool::new(device.infer.preliminary),
            totals: Mutex::default(),
            session: OnceLock::new(),
            associations: OnceLock::new(),
            fallen: OnceLock::new(),
            queue: Queue::default(),
            shadows: Shadows::default(),
            gate: RwLock::new(device.gate.clone()),
            quarters: Mutex::default(),
        });
        let (session, handle) = make_session(&device, &core)?;
        let _ = core.session.set(handle.clone());

        let observer = {
            let core = core.clone();
            move |series_uid: &str| preliminary::observe(&core, series_uid)
        };
        let machine = |what| move |source| ServiceError::Machine { what, source };
        let encoders = core.early.start(loader.threads, Box::new(observer)).map_err(machine("encoders"))?;
        let (calls, called) = mpsc::channel();
        let restored: BTreeSet<String> = pending.iter().map(|series| series.series_uid.clone()).collect();
        let assembly = Assembly::restore(policy(&device.series), pending, clock.monotonic());
        let mut this = Self {
            core: core.clone(),
            listener: None,
            encoders: Some(encoders),
            calls: calls.clone(),
            assembler: None,
            worker: None,
            caretaker: None,
            shadow: None,
            following: None,
            session: handle,
            broker: None,
            stopping: Arc::default(),
            retention: Arc::new(Mutex::new(device.store.retention)),
            device,
        };
        // From here on `this` ends what has begun, should the rest fail.
        this.assembler =
            Some(spawn(&core, "assembler", move |core| assembler::run(core, assembly, &called))?);
        this.worker = Some(spawn(&core, "jobs", |core| jobs::run(core))?);
        this.shadow = Some(spawn(&core, "shadow", |core| shadow::run(core))?);
        this.caretaker = Some(spawn(&core, "caretaker", {
            let (stopping, retention) = (this.stopping.clone(), this.retention.clone());
            let announce = this.session.clone();
            move |core| take_care(core, &stopping, &retention, &announce)
        })?);
        this.following = Following::start(&this.device, &slots, &loader, &core, &this.stopping)?;
        let executor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(machine("network side"))?;
        let server = match this.device.http.listen {
            Listen::Off => None,
            Listen::At(address) => {
                let core = core.clone();
                Some(http::Server::start(executor.handle(), address, Arc::new(move || core.snapshot()))?)
            }
        };
        this.broker = Some(spawn(&core, "broker", move |_| {
            executor.block_on(async {
                session.run().await;
                if let Some(server) = server {
                    server.stop().await;
                }
            });
            // What still waits for the disk is not waited for.
            executor.shutdown_timeout(Duration::from_secs(1));
        })?);
        let intake = Intake { core: core.clone(), calls, restored };
        let listener = Listener::start(listen, Arc::new(intake))?;
        let _ = core.associations.set(Box::new(listener.watch()));
        this.listener = Some(listener);
        Ok(this)
    }

    /// Where it listens for DICOM.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.as_ref().map(Listener::address)
    }

    /// The configuration that it runs with.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How it is doing.
    pub fn snapshot(&self) -> Snapshot {
        self.core.snapshot()
    }

    /// The part that has failed in a way that it does not know, if one has: the service is then to be started anew.
    pub fn fallen(&self) -> Option<&'static str> {
        self.core.fallen.get().copied()
    }

    /// Takes over what can be changed while it runs; the answer says what waits for a restart.
    ///
    /// # Errors
    /// What the listener does not take; nothing has then changed.
    pub fn reload(&mut self, new: &Device) -> Result<Changes, ServiceError> {
        let changes = Device::changes(&self.device, new);
        if let Some(listener) = &self.listener {
            listener.set_options(Options { tls: None, ..plain_options(new) })?;
        }
        self.core.store.set_limits(limits(&new.store));
        self.core.tasks.set_rules(&new.tasks);
        self.core.gate.write().unwrap_or_else(PoisonError::into_inner).clone_from(&new.gate);
        self.core.preliminary.store(new.infer.preliminary, Ordering::Relaxed);
        self.session.set_health((&new.mqtt).into());
        *locked(&self.retention) = new.store.retention;
        if let Some(following) = &self.following {
            following.reload(new);
        }
        // The assembler ends after this.
        let _ = self.calls.send(Call::Policy(policy(&new.series)));
        // What waits for a restart differs until then.
        self.device.reload(new);
        Ok(changes)
    }

    /// Ends in order: no new instance, no new job, the results on their way out. The job in hand is finished if it takes no
    /// longer than `grace`; else it waits for the next start. Returns whether it was finished.
    pub fn stop(mut self, grace: Duration) -> bool {
        let until = Instant::now() + grace;
        if let Some(listener) = self.listener.take() {
            let aborted = listener.shutdown(ASSOCIATIONS_GRACE.min(grace));
            if aborted > 0 {
                tracing::warn!(aborted, "associations were aborted; their senders send the rest again");
            }
        }
        let _ = self.calls.send(Call::Stop);
        join(self.assembler.take());
        self.stopping.stop();
        self.core.queue.stop();
        self.core.shadows.wake();
        join(self.caretaker.take());
        join(self.shadow.take());
        if let Some(following) = self.following.take() {
            following.stop();
        }
        self.core.early.stop();
        let finished = self.worker.take().is_none_or(|worker| {
            while !worker.is_finished() && Instant::now() < until {
                thread::sleep(Duration::from_millis(10));
            }
            let finished = worker.is_finished();
            if finished {
                join(Some(worker));
            } else if let Some(job) = jobs::abandon(&self.core) {
                tracing::warn!(%job, "the job in hand waits for the next start");
            }
            finished
        });
        if finished {
            drop(self.encoders.take());
        } else {
            // Its threads are in the middle of something that takes too long.
            std::mem::forget(self.encoders.take());
        }
        self.session.shut_down();
        let until = Instant::now() + BROKER_GRACE;
        while self.broker.as_ref().is_some_and(|broker| !broker.is_finished()) && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
        tracing::info!("service ended");
        finished
    }
}

impl Drop for Service {
    /// Where it was not stopped, or did not start as a whole: tells all parts to end, and waits for none.
    fn drop(&mut self) {
        drop(self.listener.take());
        let _ = self.calls.send(Call::Stop);
        self.stopping.stop();
        self.core.queue.stop();
        self.core.shadows.wake();
        self.core.early.stop();
        self.session.shut_down();
    }
}

/// A part's thread; should it panic, the service is no longer whole and says so.
fn spawn(
    core: &Arc<Core>,
    name: &'static str,
    work: impl FnOnce(&Arc<Core>) + Send + 'static,
) -> Result<JoinHandle<()>, ServiceError> {
    let core = core.clone();
    let spawned = thread::Builder::new().name(name.into()).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| work(&core))).is_err() {
            let _ = core.fallen.set(name);
        }
    });
    spawned.map_err(|source| ServiceError::Machine { what: name, source })
}

fn join(thread: Option<JoinHandle<()>>) {
    // A panic in it has been told.
    let _ = thread.map(JoinHandle::join);
}

/// Looks for new plugins, has those that run checked, and deletes what is old.
fn take_care(core: &Core, stopping: &Queue, retention: &Mutex<Duration>, session: &Handle) {
    let mut steady = Steadiness::default();
    let mut checks = Checks::default();
    let mut swept: Option<Instant> = None;
    while !stopping.is_stopping() {
        match core.tasks.refresh() {
            Ok(true) => session.announce(),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the plugins cannot be listed"),
        }
        for (task, _) in core.tasks.unfit() {
            core.early.drop_task(&task);
        }
        if checks.look(core) {
            continue;
        }
        let keep = *locked(retention);
        if swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY.min(keep / 10)) {
            swept = Some(Instant::now());
            let keep = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
            let wall = core.clock.wall();
            if steady.allows(wall, core.clock.monotonic(), keep) {
                match core.store.sweep(wall, keep) {
                    Ok(swept) if swept.series > 0 => tracing::info!(?swept, "old series deleted"),
                    Ok(_) => {}
                    Err(error) => tracing::error!(%error, "old series cannot be deleted"),
                }
            }
        }
        stopping.pause(LOOK_EVERY);
    }
}

fn make_session(device: &Device, core: &Arc<Core>) -> Result<(Session<Store>, Handle), ServiceError> {
    let since = rfc3339(SystemTime::now());
    let online = core.clone();
    let state = move |presence| State::json(presence, BUILD, &online.tasks.names(), &since);
    let health = core.clone();
    let health = move |()| health.health();
    // Only spreads devices out in time.
    let seed = core.clock.wall().unsigned_abs() ^ u64::from(std::process::id());
    let options =
        session::Options::of(device, Box::new(state), Box::new(health), seed).map_err(Error::from)?;
    Ok(Session::new(options, core.store.clone(), (&device.mqtt).into()))
}

fn make_key(device: &Device) -> Result<crate::result::DeviceKey, ServiceError> {
    let make = std::fs::create_dir_all(&device.data_dir);
    make.map_err(|source| ServiceError::Machine { what: "data folder", source })?;
    Ok(device_key(&device.data_dir.join("device.key")).map_err(Error::from)?)
}

/// A backbone that cannot be read is told at the start, not when the first plugin goes live.
fn check_backbone(device: &Device) -> Result<(), Error> {
    let path = &device.backbone;
    if device.follows_repository() && !path.exists() {
        tracing::warn!(path = %path.display(), "there is no backbone: the repository must have that of each plugin");
        return Ok(());
    }
    Ok(Backbone::open(path).map(drop)?)
}

fn pending(store: &Store) -> Result<Vec<Pending>, Error> {
    let series = store.series()?.into_iter().map(|series| Pending {
        series_uid: series.series_uid,
        instances: series.instances,
        expected: series.expected,
    });
    Ok(series.collect())
}

fn limits(store: &device::Store) -> Limits {
    Limits { max_bytes: store.max_size.0, min_free_bytes: store.min_free.0, max_tries: store.max_tries }
}

fn policy(series: &device::Series) -> Policy {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    Policy {
        association_end: series.association_end,
        expected_count: series.expected_count,
        idle_ms: match series.idle {
            Timeout::Off => None,
            Timeout::After(time) => Some(ms(time)),
        },
        max_age_ms: ms(series.max_age),
    }
}

fn listen_options(device: &Device) -> Result<Options, ServiceError> {
    let tls = &device.dicom.tls;
    let tls = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => Some(Tls::open(cert, key, tls.client_ca.as_deref())?),
        _ => None,
    };
    Ok(Options { tls, ..plain_options(device) })
}

fn plain_options(device: &Device) -> Options {
    let dicom = &device.dicom;
    let mut options = Options::new(dicom.listen, dicom.ae_title.as_str());
    options.calling = dicom.calling.iter().map(|title| title.as_str().to_owned()).collect();
    options.peers.clone_from(&dicom.peers);
    options.max_associations = dicom.max_associations as usize;
    options.max_pdu = u32::try_from(dicom.max_pdu.0).unwrap_or(u32::MAX);
    options.max_instance_bytes = dicom.max_instance.0;
    options.deadline = dicom.association_deadline;
    options.idle = dicom.idle_timeout;
    options
}
