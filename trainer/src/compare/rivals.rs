//! Networks that are fitted whole.

use std::sync::Arc;
use std::time::Duration;

use super::cell::{Fitted, Job, Outcome};
use super::method::Base;
use crate::Error;
use crate::data::{Cache, Slices, Study};
use crate::rival::{self, Kept, Method, Rival, Settings, build, start_from};
use crate::run::{file, open_backbone};

/// A fit that takes longer goes on from there when it was interrupted.
const CHECKPOINT_EVERY: Duration = Duration::from_mins(1);

struct Network {
    network: Box<dyn Rival>,
    device: tch::Device,
}

/// The only scan of a study.
fn only(study: &Study) -> Option<&Slices> {
    study.views.iter().flatten().next().map(Arc::as_ref)
}

impl Fitted for Network {
    fn logits(&self, study: &Study) -> Result<Vec<f32>, Error> {
        let slices = only(study).ok_or_else(|| tch::TchError::Convert("a sample has no slices".into()))?;
        Ok(rival::logits(self.network.as_ref(), slices, self.device)?)
    }

    fn resampled(&self, study: &Study) -> Option<[usize; 3]> {
        let slices = only(study)?;
        let [height, width] = slices.size;
        self.network.resampled([slices.count, height, width])
    }
}

pub(super) fn fit(job: &Job<'_>, base: Base, method: Method) -> Result<Outcome, Error> {
    let (task, table, options) = (&job.task, &job.table, job.options);
    let cache = Cache::new(table, task, task.train.cache_mb << 20)
        .stored_in(Some(&job.slices()))?
        .skipping(task.train.skip_unreadable);
    let backbone = method.needs_backbone().then(|| open_backbone(&job.backbone, task.blocks)).transpose()?;
    let weights = options.weights.iter().find(|file| file.name == base.name());
    let weights = weights.map(|file| file.path.as_path());
    if weights.is_none() && base.needs_weights() {
        let method = base.name();
        let problem = format!("its published weights are missing, expected --weights {method}=FILE");
        return Err(Error::Rival { method, problem });
    }
    let network = build(method, task, backbone.as_ref(), weights, options.device)?;
    let mut notes = Vec::new();
    if let Some(path) = weights {
        let taken = start_from(method, network.as_ref(), path)?;
        notes.push(format!("{taken} values start from {}", path.display()));
    }
    let settings = Settings::usual(method, task);
    let last = job.folder.join(file::LAST);
    let checkpoint = Some(Kept { path: last.clone(), every: CHECKPOINT_EVERY });
    let (device, threads, progress) = (options.device, options.threads, options.progress);
    let cache = &cache;
    let options =
        rival::Options { task, cache, device, threads, settings, checkpoint, stop_after: None, progress };
    let made = rival::fit(method, network.as_ref(), &options)?;
    let made = made
        .ok_or_else(|| Error::Run { path: job.folder.clone(), problem: "its fit is not finished".into() })?;
    let parameters = network.weights().count();
    Ok(Outcome {
        model: Box::new(Network { network, device }),
        parameters,
        bytes: 4 * parameters as u64,
        best_epoch: Some(made.best),
        seconds: made.seconds,
        notes,
        // As large as the network several times.
        left_over: Some(last),
    })
}
