//! LoRA on the frozen backbone, whatever pools the slices.

use super::cell::{Fitted, Job, Outcome};
use crate::Error;
use crate::data::Study;
use crate::fit;
use crate::model::{Network, Pooling};
use crate::run::Run;

struct Lora {
    network: Network,
    chunk: usize,
}

impl Fitted for Lora {
    fn logits(&self, study: &Study) -> Result<Vec<f32>, Error> {
        Ok(self.network.predict(study, self.chunk)?.logits)
    }
}

pub(super) fn fit(job: &Job<'_>, pooling: Pooling) -> Result<Outcome, Error> {
    let mut task = job.task.clone();
    task.train.pooling = pooling;
    let mut notes = Vec::new();
    if pooling == Pooling::ThreePlanes && task.train.pixel.take().is_some() {
        notes.push("without pixel supervision, since a mask does not lie on its planes".into());
    }
    let options = job.options;
    let summary = fit::fit(&fit::Options {
        task,
        task_path: job.task_path.into(),
        data: job.table.path.clone(),
        split: None,
        backbone: job.backbone.clone(),
        out: job.folder.clone(),
        init_from: None,
        device: options.device,
        precision: options.precision,
        threads: options.threads,
        probe: false,
        cache: Some(job.slices()),
        stop_after: None,
        progress: options.progress,
    })?;
    let unfinished = || Error::Run { path: job.folder.clone(), problem: "its fit is not finished".into() };
    let summary = summary.ok_or_else(unfinished)?;
    let run = Run::open(&job.folder)?;
    let network = run.network(&run.backbone(None)?, options.device)?;
    Ok(Outcome {
        model: Box::new(Lora { network, chunk: job.task.train.chunk }),
        parameters: summary.parameters,
        bytes: 4 * summary.parameters as u64,
        best_epoch: Some(summary.best_epoch),
        seconds: summary.seconds,
        notes,
        left_over: None,
    })
}
