//! Networks that are fitted whole.

use super::cell::{Fitted, Job, Outcome};
use super::method::Base;
use crate::Error;
use crate::data::{Cache, Study};
use crate::model::stored;
use crate::rival::{self, Method, Rival, Settings, build, start_from};
use crate::run::open_backbone;

struct Network {
    network: Box<dyn Rival>,
    device: tch::Device,
}

impl Fitted for Network {
    fn logits(&self, study: &Study) -> Result<Vec<f32>, Error> {
        let _guard = tch::no_grad_guard();
        let slices = study.views.iter().flatten().next();
        let slices = slices.ok_or_else(|| tch::TchError::Convert("a sample has no slices".into()))?;
        let volume = slices.tensor(0, slices.count, self.device)?.f_unsqueeze(0)?;
        Ok(stored(&self.network.forward(&volume, false)?)?.data)
    }
}

pub(super) fn fit(job: &Job<'_>, base: Base, method: Method) -> Result<Outcome, Error> {
    let (task, table, options) = (&job.task, &job.table, job.options);
    let cache = Cache::new(table, task, task.train.cache_mb << 20)
        .stored_in(Some(&job.slices()))?
        .skipping(task.train.skip_unreadable);
    let backbone = method.needs_backbone().then(|| open_backbone(&job.backbone, task.blocks)).transpose()?;
    let network = build(method, task, backbone.as_ref(), options.device)?;
    let mut notes = Vec::new();
    let weights = options.weights.iter().find(|file| file.name == base.name()).map(|file| &file.path);
    if let Some(path) = weights {
        let taken = start_from(method, network.as_ref(), path)?;
        notes.push(format!("{taken} values start from {}", path.display()));
    } else if base.needs_weights() {
        let problem =
            format!("it needs {0}=FILE with the published weights, for the method {0}", base.name());
        return Err(Error::Flag { flag: "--weights", problem });
    }
    let made = rival::fit_built(
        method,
        network.as_ref(),
        &rival::Options {
            task,
            cache: &cache,
            backbone: backbone.as_ref(),
            weights: None,
            device: options.device,
            threads: options.threads,
            settings: Settings::usual(method, task),
            progress: options.progress,
        },
    )?;
    if made.resampled > 0 {
        notes.push(format!(
            "{} of {} predicted volumes have fewer than {} voxels along an axis and were resampled to as many",
            made.resampled,
            made.rows.len(),
            rival::LEAST
        ));
    }
    Ok(Outcome {
        model: Box::new(Network { network, device: options.device }),
        parameters: made.parameters,
        bytes: 4 * made.parameters as u64,
        best_epoch: Some(made.best),
        seconds: made.fit_seconds,
        notes,
    })
}
