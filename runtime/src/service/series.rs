//! What one series says to a task that looks at it alone, from its slices or from its volume.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::early::Ready;
use super::jobs::Trouble;
use crate::Error;
use crate::infer::{Context, Encoded, LoadedTask, Scan, SliceName};
use crate::result::TaskResult;
use crate::store::{Job, StoredInstance};
use crate::volume::{Arrangement, Header, Instance, Volume, VolumeError, series_digest};

/// The digest of a series as it was received.
pub(super) fn received(instances: &[StoredInstance]) -> String {
    series_digest(instances.iter().map(|stored| stored.sha256.clone()))
}

/// Of each instance, as it arrived or, after a restart, read again.
pub(super) fn headers(
    core: &Core,
    series_uid: &str,
    instances: &[StoredInstance],
) -> Result<Vec<Arc<Header>>, Error> {
    let one = |stored: &StoredInstance| {
        let known = core.early.header(series_uid, &stored.sop_uid);
        known.map_or_else(|| Ok(Arc::new(Header::read(&stored.path)?)), Ok)
    };
    instances.iter().map(one).collect()
}

/// Why a task says nothing of a series.
pub(super) enum Refused {
    /// It cannot be classified, however often it is tried.
    Series(String),
    Trouble(Trouble),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        match error {
            // Stored files do not vanish by themselves.
            Error::Volume(error @ VolumeError::Io { .. }) => {
                Self::Trouble(Trouble::Failed(error.to_string()))
            }
            error if error.is_bad_input() => Self::Series(error.to_string()),
            error => Self::Trouble(error.into()),
        }
    }
}

impl From<VolumeError> for Refused {
    fn from(error: VolumeError) -> Self {
        Error::from(error).into()
    }
}

/// The series of a job, as far as it is read.
pub(super) struct Series<'a> {
    pub core: &'a Core,
    pub job: &'a Job,
    pub headers: &'a [Arc<Header>],
    /// Read once, for all tasks that need it whole.
    pub volume: Option<Volume>,
}

impl Series<'_> {
    pub fn classify(&mut self, task: &Arc<LoadedTask>, context: &Context) -> Result<TaskResult, Refused> {
        let single = self.headers.iter().all(|header| header.is_image && header.number_of_frames == 1);
        if single
            && task.plugin.manifest.is_streamable()
            && let Some(result) = self.by_slices(task, context)?
        {
            return Ok(result);
        }
        if self.core.queue.is_stopping() {
            return Err(Refused::Trouble(Trouble::Stopped));
        }
        self.as_a_whole(task, context)
    }

    /// From slices that were encoded by themselves, most of them while the series was arriving. `None` where the series
    /// must be read whole.
    fn by_slices(&self, task: &Arc<LoadedTask>, context: &Context) -> Result<Option<TaskResult>, Refused> {
        let start = Instant::now();
        let all = self.job.instances.iter().zip(self.headers);
        let wanted: Vec<_> = all
            .map(|(stored, header)| (stored.sop_uid.as_str(), header.clone(), stored.path.as_path()))
            .collect();
        let slices = self.core.early.encode(&self.job.series_uid, &wanted, task);
        if self.core.queue.is_stopping() {
            return Err(Refused::Trouble(Trouble::Stopped));
        }
        let Some(mut slices) = slices.into_iter().collect::<Option<Vec<Arc<Ready>>>>() else {
            return Ok(None);
        };
        let encoded = start.elapsed();
        slices.sort_by(|a, b| a.instance.sop_uid().cmp(b.instance.sop_uid()));
        let read = series_digest(slices.iter().map(|ready| ready.read.sha256.clone()));
        unchanged(&self.job.instances, &read)?;
        let instances = slices.iter().map(|ready| ready.instance.clone()).collect();
        let arrangement = Arrangement::new(&origin(&self.job.instances), instances)?;
        if !(0..slices.len()).all(|k| arrangement.stands_alone(k)) {
            return Ok(None);
        }
        let by_uid = |instance: &Instance| {
            let at = slices.binary_search_by(|ready| ready.instance.sop_uid().cmp(instance.sop_uid()));
            at.ok().and_then(|at| slices[at].of(task))
        };
        let stored: Vec<&Instance> = arrangement.slices().map(|(instance, _)| instance).collect();
        let ascending = arrangement.ascending();
        let parts: Option<Vec<&Encoded>> = ascending.iter().map(|&k| by_uid(stored[k])).collect();
        let Some(parts) = parts else { return Ok(None) };
        let odd = slices.iter().filter_map(|ready| Some((ready.read.odd.clone()?, ready.instance.path())));
        let names = ascending.iter().enumerate().map(|(index, &k)| SliceName {
            index,
            sop_instance_uid: Some(stored[k].sop_uid().to_owned()),
            frame_number: None,
        });
        let scan = Scan {
            source: &arrangement.source(received(&self.job.instances)),
            observed: Some(arrangement.observed()),
            warnings: &arrangement.warnings(odd),
            slices: names.collect(),
        };
        let mut result = task.conclude(scan, &parts, context)?.result;
        result.timings_ms.insert("encode".into(), milliseconds(encoded));
        Ok(Some(result))
    }

    /// From the volume.
    fn as_a_whole(&mut self, task: &Arc<LoadedTask>, context: &Context) -> Result<TaskResult, Refused> {
        let start = Instant::now();
        let volume = match self.volume.take() {
            Some(volume) => volume,
            None => read(&self.job.instances)?,
        };
        let read = start.elapsed();
        let volume = self.volume.insert(volume);
        let start = Instant::now();
        let prepared = task.prepare(0, volume)?;
        let prepare = start.elapsed();
        let start = Instant::now();
        let mut result = task.classify(&[Some(&prepared)], context, &|| {})?.result;
        for (name, time) in [("read", read), ("prepare", prepare), ("encode", start.elapsed())] {
            result.timings_ms.insert(name.into(), milliseconds(time));
        }
        Ok(result)
    }
}

/// The volume of a series, unless its files have changed since they were received.
pub(super) fn read(stored: &[StoredInstance]) -> Result<Volume, Refused> {
    let instances = stored.iter().map(|stored| Instance::open(&stored.path));
    let instances: Vec<Instance> = instances.collect::<Result<_, VolumeError>>()?;
    let volume = Arrangement::new(&origin(stored), instances)?.read()?;
    unchanged(stored, &volume.source.digest)?;
    Ok(volume)
}

/// Checks the digest of what was decoded against what was received.
fn unchanged(stored: &[StoredInstance], read: &str) -> Result<(), Refused> {
    if read == received(stored) {
        return Ok(());
    }
    let problem = "the stored files are not what was received; check the disk and send the series again";
    Err(Refused::Trouble(Trouble::Failed(format!("{}: {problem}", origin(stored).display()))))
}

/// What messages name: the folder of the series in the store.
fn origin(stored: &[StoredInstance]) -> PathBuf {
    let path = stored.first().map_or(Path::new("the series"), |stored| &stored.path);
    path.parent().unwrap_or(path).to_owned()
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
