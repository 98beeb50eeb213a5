//! How tasks are loaded on a device: each with weights of its own, or on a backbone that they share.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use firmware_config::device::{Device, Weights};

use super::LoadedTask;
use crate::Error;
use crate::backbone::Backbone;
use crate::engine::{
    Engine, Mode, Precision, SharedBlocks, SharedLayers, default_threads, has_instructions_for,
};
use crate::graph::{blocks_model, of_view, without_blocks};
use crate::plugin::Plugin;
use crate::proc::memory_at_hand;

/// See the module's description.
///
/// Tasks that share a backbone may differ in its number of blocks and in the size of their slices.
pub struct Loader {
    backbone: PathBuf,
    /// Slices that a task encodes at a time.
    pub threads: usize,
    weights: Weights,
    precision: Precision,
    /// Tasks that run here, and those of them that are about to be loaded.
    running: AtomicUsize,
    to_load: AtomicUsize,
    /// By SHA-256 and precision; each is dropped with the last task on it.
    shared: Mutex<HashMap<(String, Precision), Weak<SharedBackbone>>>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("backbone", &self.backbone).finish_non_exhaustive()
    }
}

impl Loader {
    /// Loads tasks on the backbone in this file, in single precision.
    pub fn new(backbone: &Path, threads: usize, weights: Weights) -> Self {
        let [running, to_load] = [1, 1].map(AtomicUsize::new);
        Self {
            backbone: backbone.to_owned(),
            threads,
            weights,
            precision: Precision::F32,
            running,
            to_load,
            shared: Mutex::default(),
        }
    }

    /// As the device's configuration says.
    pub fn of(device: &Device) -> Self {
        let threads = device.threads.map_or_else(default_threads, |n| n as usize);
        Self::new(&device.backbone, threads, device.weights).in_precision(device.precision)
    }

    /// Loads them in that precision, where the machine has it and their golden cases allow it.
    #[must_use]
    pub fn in_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The backbone of the plugins that have none of their own.
    pub fn backbone(&self) -> &Path {
        &self.backbone
    }

    /// How many tasks are to run here, and how many of them are to be loaded from now on, which [`Weights::Auto`] goes by.
    pub fn expect(&self, running: usize, to_load: usize) {
        self.running.store(running.max(1), Ordering::Relaxed);
        self.to_load.store(to_load.max(1), Ordering::Relaxed);
    }

    /// Loads a plugin that was read from `path`, on `backbone`. Where `known` says that its task graph was compared on this device
    /// before, and that graph is not needed, it is not built again.
    ///
    /// In less than single precision only a task is run whose golden cases it reproduces so, within the tolerances that it states.
    pub fn load(
        &self,
        plugin: Plugin,
        plugin_sha256: String,
        path: &Path,
        backbone: &Path,
        known: bool,
    ) -> Result<LoadedTask, Error> {
        let precision = self.precision;
        if precision == Precision::F32 || !has_instructions_for(precision) {
            return self.load_in(Precision::F32, plugin, plugin_sha256, path, backbone, known);
        }
        let task = self.load_in(precision, plugin.clone(), plugin_sha256.clone(), path, backbone, known)?;
        let Err(error) = task.check_golden() else { return Ok(task) };
        drop(task);
        let (name, precision) = (&plugin.manifest.task.name, precision.as_str());
        tracing::warn!(task = name, precision, %error, "the task is computed in single precision");
        self.load_in(Precision::F32, plugin, plugin_sha256, path, backbone, true)
    }

    fn load_in(
        &self,
        precision: Precision,
        plugin: Plugin,
        plugin_sha256: String,
        path: &Path,
        backbone: &Path,
        known: bool,
    ) -> Result<LoadedTask, Error> {
        let merge = |plugin: Plugin, sha256, backbone: Backbone| {
            let engine = Engine::of_precision(plugin.graph(backbone)?, precision, self.threads)?;
            LoadedTask::of(plugin, sha256, engine, path)
        };
        let shared = if let Some(shared) = self.known(&plugin, precision) {
            shared
        } else {
            let read = Backbone::open(backbone)?;
            if self.mode(&read) == Mode::Merged {
                return merge(plugin, plugin_sha256, read);
            }
            self.share(&plugin, backbone, read, precision)?
        };
        if !known {
            plugin.graph(Backbone::open(backbone)?)?;
        }
        match shared.engine(&plugin, self.threads)? {
            Some(engine) => {
                let mut task = LoadedTask::of(plugin, plugin_sha256, engine, path)?;
                task.shared = Some(shared);
                Ok(task)
            }
            // Nothing that can be shared.
            None => merge(plugin, plugin_sha256, Backbone::open(backbone)?),
        }
    }

    fn mode(&self, backbone: &Backbone) -> Mode {
        match self.weights {
            Weights::Merged => Mode::Merged,
            Weights::Shared => Mode::Shared,
            Weights::Auto => {
                let [running, to_load] =
                    [&self.running, &self.to_load].map(|tasks| tasks.load(Ordering::Relaxed));
                let weights = backbone.tensors.values().map(|tensor| 4 * tensor.data.len() as u64).sum();
                let mode = choose(running, to_load, weights, memory_at_hand());
                if mode == Mode::Shared {
                    tracing::info!(
                        "the tasks share their backbone's weights, as memory is short for one copy each"
                    );
                }
                mode
            }
        }
    }

    /// The backbone of a plugin, if tasks share it already and it is to be shared.
    fn known(&self, plugin: &Plugin, precision: Precision) -> Option<Arc<SharedBackbone>> {
        let all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.get(&(plugin.manifest.backbone.sha256.clone(), precision))?.upgrade();
        known.filter(|_| self.weights != Weights::Merged)
    }

    /// Shares the backbone that was read from `path`.
    fn share(
        &self,
        plugin: &Plugin,
        path: &Path,
        backbone: Backbone,
        precision: Precision,
    ) -> Result<Arc<SharedBackbone>, Error> {
        let sha256 = backbone.sha256.clone();
        let shared = Arc::new(SharedBackbone::new(path, backbone, plugin, precision)?);
        let mut all = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, shared| shared.strong_count() > 0);
        all.insert((sha256, precision), Arc::downgrade(&shared));
        Ok(shared)
    }
}

/// What [`Weights::Auto`] does: weights of its own for each task, unless the copies that are to be made would take more than half of
/// the memory at hand. Loaded one after another, all that fitted at first still fit, so that they do not become a mixture.
fn choose(running: usize, copies: usize, weights: u64, at_hand: Option<u64>) -> Mode {
    let all = (copies as u64).saturating_mul(weights);
    match at_hand {
        Some(at_hand) if running > 1 && all > at_hand / 2 => Mode::Shared,
        _ => Mode::Merged,
    }
}

/// A backbone whose packed weights serve any number of tasks.
pub(crate) struct SharedBackbone {
    path: PathBuf,
    precision: Precision,
    /// What is needed of it beside the packed weights.
    rest: Backbone,
    packed: Mutex<Packed>,
}

#[derive(Default)]
struct Packed {
    layers: SharedLayers,
    /// By number of blocks, and height and width of the slices; none where they cannot be shared.
    blocks: HashMap<(usize, [usize; 2]), Option<SharedBlocks>>,
}

impl SharedBackbone {
    /// Packs what the plugin needs of the backbone that was read from `path`.
    fn new(path: &Path, backbone: Backbone, plugin: &Plugin, precision: Precision) -> Result<Self, Error> {
        let (path, rest) = (path.to_owned(), without_blocks(&backbone));
        let shared = Self { path, precision, rest, packed: Mutex::default() };
        // While it is at hand.
        let depth = plugin.manifest.backbone.blocks.unwrap_or(backbone.arch.depth());
        if let Some((_, recipe)) = plugin.manifest.inputs().first() {
            shared.blocks(plugin, depth, recipe.size, Some(backbone))?;
        }
        Ok(shared)
    }

    /// The blocks for slices of that size, packed at the first time.
    fn blocks(
        &self,
        plugin: &Plugin,
        depth: usize,
        size: [usize; 2],
        backbone: Option<Backbone>,
    ) -> Result<Option<SharedBlocks>, Error> {
        let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
        let Packed { layers, blocks } = &mut *packed;
        if let Some(known) = blocks.get(&(depth, size)) {
            return Ok(known.clone());
        }
        let mut backbone = match backbone {
            Some(backbone) => backbone,
            None => Backbone::open(&self.path)?,
        };
        // Also later: another file may have taken its place.
        plugin.check_backbone(&backbone)?;
        backbone.truncate(depth)?;
        let model = blocks_model(backbone, size)?;
        let of_size = model.and_then(|model| layers.pack(model, self.precision));
        blocks.insert((depth, size), of_size.clone());
        Ok(of_size)
    }

    /// An engine on the shared weights; `None` where they cannot be shared.
    fn engine(&self, plugin: &Plugin, threads: usize) -> Result<Option<Engine>, Error> {
        let mut rest = self.rest.clone();
        let depth = plugin.manifest.backbone.blocks.unwrap_or(rest.arch.depth());
        rest.truncate(depth)?;
        let Some((after, factors)) = plugin.beside(&rest)? else { return Ok(None) };
        let mut views = Vec::new();
        for ((name, recipe), factors) in plugin.manifest.inputs().into_iter().zip(factors) {
            let Some(blocks) = self.blocks(plugin, depth, recipe.size, None)? else { return Ok(None) };
            let slices = name.map_or("slices".to_owned(), |name| of_view("slices", name));
            views.push((slices, blocks, factors));
        }
        Ok(Some(Engine::beside(after, views, self.precision, threads)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_shared_where_copies_would_take_more_than_half_of_the_memory() {
        let mb = 1 << 20;
        assert_eq!(choose(1, 1, 88 * mb, Some(100 * mb)), Mode::Merged, "nobody to share with");
        assert_eq!(choose(2, 2, 88 * mb, Some(400 * mb)), Mode::Merged);
        assert_eq!(choose(3, 3, 88 * mb, Some(400 * mb)), Mode::Shared);
        assert_eq!(choose(3, 1, 88 * mb, Some(400 * mb)), Mode::Merged, "one more");
        assert_eq!(choose(3, 1, 88 * mb, Some(170 * mb)), Mode::Shared, "one more than fits");
        assert_eq!(choose(16, 16, 88 * mb, None), Mode::Merged, "Linux does not tell");
        let (tasks, weights) = (5, 88 * mb);
        let all = (0..tasks).map(|n| choose(5, 5 - n, weights, Some(890 * mb - n as u64 * weights)));
        assert!(all.into_iter().all(|mode| mode == Mode::Merged), "what fitted still fits");
    }
}
