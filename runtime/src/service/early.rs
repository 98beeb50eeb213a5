//! Slices that are encoded while their series is still arriving.
//!
//! What is known of an instance is kept from its arrival on: its header, and, where a task's recipe needs only the slice
//! itself, what the encoder says of it. A job that asks for slices gets those that are there and waits for the rest, so
//! that after the last slice of a series only that slice is left to encode. Slices are taken in the order in which they
//! came, each by one thread.
//!
//! A series keeps the plugins that its first slices were encoded with until its job has ended, whatever goes live meanwhile: what
//! is done is not done again, and all slices of a result are of one plugin.
//!
//! Nothing here is durable, and nothing here counts tries: the instances of a series that was open when the process ended
//! are not touched before its job is, in case one of them was what ended it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::Error;
use crate::engine::Encoder;
use crate::infer::{Encoded, LoadedTask};
use crate::volume::{FileRead, Header, Instance};

/// Beyond so many bytes, the series that was asked for longest ago is forgotten; its slices are then encoded when its job
/// asks for them.
const MOST_BYTES: usize = 64 << 20;
/// What a header and its place cost, roughly.
const HEADER_BYTES: usize = 2 << 10;

/// An instance of one slice, encoded for some tasks.
#[derive(Debug)]
pub struct Ready {
    /// What the file says of its pixels' place.
    pub instance: Instance,
    /// What was found when it was decoded.
    pub read: FileRead,
    /// By the SHA-256 of the task's plugin.
    by_plugin: BTreeMap<String, Encoded>,
}

impl Ready {
    /// What `task` says of it.
    pub fn of(&self, task: &LoadedTask) -> Option<&Encoded> {
        self.by_plugin.get(&task.plugin_sha256)
    }
}

/// A slice that arrived, for [`Early::done`].
pub type Done = (Arc<Header>, Arc<Ready>);

/// Told of each slice that was encoded as it arrived: its Series Instance UID.
pub type Observer = Box<dyn Fn(&str) + Send + Sync>;

/// What is known of the instances that arrived; a handle that can be cloned.
#[derive(Clone, Default)]
pub struct Early(Arc<Shared>);

/// The threads that encode; dropped, they end after the slices in hand.
pub struct Encoders {
    early: Early,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something is to be done.
    work: Condvar,
    /// Something is done.
    done: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Item>,
    series: BTreeMap<String, Series>,
    bytes: usize,
    clock: u64,
    stopping: bool,
    /// Slices that threads have in hand.
    in_hand: usize,
    /// Slices encoded, in all.
    encoded: u64,
}

#[derive(Default)]
struct Series {
    instances: BTreeMap<String, Known>,
    /// The plugins that it began with, by the names of their tasks.
    began_with: BTreeMap<String, Arc<LoadedTask>>,
    touched: u64,
    bytes: usize,
}

struct Known {
    header: Arc<Header>,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    /// Nobody has asked.
    Stored,
    Queued,
    Done(Arc<Ready>),
    /// It cannot be encoded by itself. Who needs it reads the series as a whole, and is told why not.
    Failed,
}

struct Item {
    series_uid: String,
    sop_uid: String,
    path: PathBuf,
    tasks: Vec<Arc<LoadedTask>>,
    /// Whether it is only now arriving.
    arriving: bool,
}

impl Early {
    /// Starts `threads` threads. `observer` is called from any of them.
    ///
    /// # Errors
    /// Where the machine has no thread left.
    pub fn start(&self, threads: usize, observer: Observer) -> std::io::Result<Encoders> {
        let observer = Arc::new(observer);
        let mut encoders = Encoders { early: self.clone(), threads: Vec::new() };
        for n in 0..threads.max(1) {
            let (shared, observer) = (self.0.clone(), observer.clone());
            let thread = thread::Builder::new().name(format!("encoder-{n}"));
            encoders.threads.push(thread.spawn(move || shared.work(&observer))?);
        }
        Ok(encoders)
    }

    /// Of `tasks`, which a series gets now, each in the version that the series began with.
    pub fn begin(&self, series_uid: &str, tasks: Vec<Arc<LoadedTask>>) -> Vec<Arc<LoadedTask>> {
        if tasks.is_empty() {
            return tasks;
        }
        let mut state = self.0.state();
        state.series(series_uid);
        let Some(series) = state.series.get_mut(series_uid) else { return tasks };
        let of = |task: Arc<LoadedTask>| {
            let name = task.plugin.manifest.task.name.clone();
            series.began_with.entry(name).or_insert(task).clone()
        };
        tasks.into_iter().map(of).collect()
    }

    /// The plugins that a series began with, by the names of their tasks.
    pub fn began_with(&self, series_uid: &str) -> BTreeMap<String, Arc<LoadedTask>> {
        self.0.state().series.get(series_uid).map(|series| series.began_with.clone()).unwrap_or_default()
    }

    /// A series' job has ended: what comes later is for the plugins of then.
    pub fn end(&self, series_uid: &str) {
        if let Some(series) = self.0.state().series.get_mut(series_uid) {
            series.began_with.clear();
        }
    }

    /// A task was taken down: no series ends with the plugin that it had.
    pub fn drop_task(&self, task: &str) {
        for series in self.0.state().series.values_mut() {
            series.began_with.remove(task);
        }
    }

    /// Whether a slice waits or is being encoded.
    pub fn is_busy(&self) -> bool {
        let state = self.0.state();
        state.in_hand > 0 || !state.queue.is_empty()
    }

    /// An instance is stored; `tasks` are those that may take it slice by slice.
    pub fn arrived(&self, header: Header, path: PathBuf, tasks: Vec<Arc<LoadedTask>>) {
        let Some(series_uid) = header.series_uid.clone() else { return };
        let sop_uid = header.sop_uid.clone();
        let early = !tasks.is_empty() && header.number_of_frames == 1;
        let stage = if early { Stage::Queued } else { Stage::Stored };
        let mut state = self.0.state();
        state.series(&series_uid).insert(sop_uid.clone(), Known { header: Arc::new(header), stage });
        state.count(&series_uid, HEADER_BYTES);
        if early {
            state.queue.push_back(Item { series_uid, sop_uid, path, tasks, arriving: true });
            self.0.work.notify_one();
        }
    }

    /// The header of an instance, if it is known.
    pub fn header(&self, series_uid: &str, sop_uid: &str) -> Option<Arc<Header>> {
        let state = self.0.state();
        state.series.get(series_uid)?.instances.get(sop_uid).map(|known| known.header.clone())
    }

    /// The slices of a series that are encoded for `task` by now.
    pub fn done(&self, series_uid: &str, task: &LoadedTask) -> Vec<Done> {
        let state = self.0.state();
        let Some(series) = state.series.get(series_uid) else { return Vec::new() };
        let done = series.instances.values().filter_map(|known| match &known.stage {
            Stage::Done(ready) if ready.of(task).is_some() => Some((known.header.clone(), ready.clone())),
            _ => None,
        });
        done.collect()
    }

    /// Each instance of a series, encoded for `task`; those that are not yet are waited for. `None` for one that cannot be
    /// encoded by itself. `wanted` are SOP Instance UIDs, headers and files.
    pub fn encode(
        &self,
        series_uid: &str,
        wanted: &[(&str, Arc<Header>, &Path)],
        task: &Arc<LoadedTask>,
    ) -> Vec<Option<Arc<Ready>>> {
        let mut state = self.0.state();
        let mut new = 0;
        for (sop_uid, header, path) in wanted {
            let known = state.series(series_uid).entry((*sop_uid).to_owned()).or_insert_with(|| {
                new += HEADER_BYTES;
                Known { header: header.clone(), stage: Stage::Stored }
            });
            let again = match &known.stage {
                Stage::Stored => true,
                // A plugin that went live after the slice had come.
                Stage::Done(ready) => ready.of(task).is_none(),
                Stage::Queued | Stage::Failed => false,
            };
            if again {
                known.stage = Stage::Queued;
                state.queue.push_back(Item {
                    series_uid: series_uid.to_owned(),
                    sop_uid: (*sop_uid).to_owned(),
                    path: (*path).to_owned(),
                    tasks: vec![task.clone()],
                    arriving: false,
                });
            }
        }
        state.count(series_uid, new);
        self.0.work.notify_all();
        let one = |state: &State, sop_uid: &str| {
            let known = state.series.get(series_uid).and_then(|series| series.instances.get(sop_uid));
            known.map_or(Stage::Failed, |known| known.stage.clone())
        };
        let mut found = Vec::with_capacity(wanted.len());
        for (sop_uid, ..) in wanted {
            loop {
                match one(&state, sop_uid) {
                    Stage::Queued | Stage::Stored if !state.stopping => {
                        state = self.0.done.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    Stage::Done(ready) => break found.push(ready.of(task).is_some().then_some(ready)),
                    _ => break found.push(None),
                }
            }
        }
        found
    }

    /// Slices encoded, in all.
    pub fn encoded(&self) -> u64 {
        self.0.state().encoded
    }

    /// Ends after the slices in hand; whoever waits is told that there is nothing.
    pub fn stop(&self) {
        self.0.state().stopping = true;
        self.0.work.notify_all();
        self.0.done.notify_all();
    }
}

impl Drop for Encoders {
    fn drop(&mut self) {
        self.early.stop();
        for thread in self.threads.drain(..) {
            // A panic in it has been told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread's life.
    fn work(&self, observer: &Observer) {
        let mut encoders: BTreeMap<String, Encoder> = BTreeMap::new();
        while let Some(item) = self.next() {
            // Working memory for plugins that are no longer used goes with the first slice that does not need it.
            encoders.retain(|plugin, _| item.tasks.iter().any(|task| task.plugin_sha256 == *plugin));
            let outcome = catch_unwind(AssertUnwindSafe(|| encode(&item, &mut encoders)));
            let stage = match outcome {
                Ok(Ok(ready)) => Stage::Done(Arc::new(ready)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a slice cannot be encoded by itself");
                    Stage::Failed
                }
                Err(_) => {
                    tracing::warn!("encoding a slice by itself panicked");
                    encoders.clear();
                    Stage::Failed
                }
            };
            let is_done = matches!(stage, Stage::Done(_));
            self.settle(&item, stage);
            if is_done
                && item.arriving
                && catch_unwind(AssertUnwindSafe(|| observer(&item.series_uid))).is_err()
            {
                tracing::warn!("a preliminary result panicked");
            }
        }
    }

    fn next(&self) -> Option<Item> {
        let mut state = self.state();
        loop {
            if state.stopping {
                return None;
            }
            if let Some(item) = state.queue.pop_front() {
                state.in_hand += 1;
                return Some(item);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn settle(&self, item: &Item, stage: Stage) {
        let mut state = self.state();
        state.in_hand -= 1;
        let mut bytes = 0;
        if let Stage::Done(ready) = &stage {
            state.encoded += ready.by_plugin.len() as u64;
            let size =
                |encoded: &Encoded| 4 * (encoded.slice.embedding.len() + encoded.slice.attention.len());
            bytes = ready.by_plugin.values().map(size).sum();
        }
        // Unless it was forgotten meanwhile.
        let series = state.series.get_mut(&item.series_uid);
        if let Some(known) = series.and_then(|series| series.instances.get_mut(&item.sop_uid)) {
            known.stage = stage;
            state.count(&item.series_uid, bytes);
        }
        drop(state);
        self.done.notify_all();
    }
}

impl State {
    /// The instances of a series, of which something is asked now.
    fn series(&mut self, series_uid: &str) -> &mut BTreeMap<String, Known> {
        self.clock += 1;
        let series = self.series.entry(series_uid.to_owned()).or_default();
        series.touched = self.clock;
        &mut series.instances
    }

    /// Counts `bytes` more for a series, and forgets others if that is too many.
    fn count(&mut self, series_uid: &str, bytes: usize) {
        let Some(series) = self.series.get_mut(series_uid) else { return };
        series.bytes += bytes;
        self.bytes += bytes;
        while self.bytes > MOST_BYTES && self.series.len() > 1 {
            let oldest = self.series.iter().min_by_key(|(_, series)| series.touched);
            let Some(oldest) = oldest.map(|(uid, _)| uid.clone()) else { return };
            self.bytes -= self.series.remove(&oldest).map_or(0, |series| series.bytes);
        }
    }
}

/// Decodes a file of one slice and encodes it for each task.
fn encode(item: &Item, encoders: &mut BTreeMap<String, Encoder>) -> Result<Ready, Error> {
    let instance = Instance::open(&item.path)?;
    let mut by_plugin = BTreeMap::new();
    let mut outcome = Ok(());
    let read = instance.read_slices(|_, slice| {
        for task in &item.tasks {
            let plugin = &task.plugin_sha256;
            let encoded = match encoders.get_mut(plugin) {
                Some(encoder) => task.encode(encoder, &slice),
                None => task.engine.encoder(0, 1).map_err(Error::from).and_then(|encoder| {
                    task.encode(encoders.entry(plugin.clone()).or_insert(encoder), &slice)
                }),
            };
            match encoded {
                Ok(encoded) => drop(by_plugin.insert(plugin.clone(), encoded)),
                Err(error) => outcome = Err(error),
            }
        }
    })?;
    outcome?;
    Ok(Ready { instance, read, by_plugin })
}
