//! A logistic head on frozen embeddings, which are computed once for all cells of a task and backbone.

use std::path::Path;
use std::time::Instant;

use runtime::backbone::Tensor as Stored;
use runtime::tensor::{read_safetensors, safetensors_bytes};

use super::cell::{Fitted, Job, Outcome};
use crate::Error;
use crate::data::{Cache, Study};
use crate::fit::bar;
use crate::model::{Network, Parameters, Pooling};
use crate::probe::{LinearProbe, Pooled, embed};
use crate::run::{encoder_for, open_backbone};
use crate::workers::Workers;

struct Probe {
    network: Network,
    chunk: usize,
    pooling: Pooling,
    head: LinearProbe,
}

impl Fitted for Probe {
    fn logits(&self, study: &Study) -> Result<Vec<f32>, Error> {
        let features = chosen(embed(&self.network, study, self.chunk)?, self.pooling);
        let lacking = || Error::Run {
            path: "probe".into(),
            problem: "a label has only one class among the training volumes; give it volumes of both".into(),
        };
        self.head.logits(&features).ok_or_else(lacking)
    }
}

fn chosen(pooled: Pooled, pooling: Pooling) -> Vec<f64> {
    if pooling == Pooling::Median { pooled.median } else { pooled.mean }
}

pub(super) fn fit(job: &Job<'_>, pooling: Pooling) -> Result<Outcome, Error> {
    let (task, table, options) = (&job.task, &job.table, job.options);
    let backbone = open_backbone(&job.backbone, task.blocks)?;
    let (labels, views) = (task.labels.len(), task.view_names());
    let parameters =
        Parameters::init(&backbone.arch, &task.lora_spec(), labels, &views, task.train.seed, options.device)?;
    let encoder = encoder_for(task, &backbone, options.device)?;
    let network = Network { encoder, parameters };
    let content = serde_json::json!([table.sha256, task.recipe, task.views, task.blocks, backbone.sha256]);
    let key = runtime::tensor::sha256(content.to_string().as_bytes());
    let path = options.out.join(format!("cache/frozen-{}.safetensors", &key[..16]));
    let pooled = if let Some(pooled) = kept(&path, table.samples.len()) {
        pooled
    } else {
        let cache =
            Cache::new(table, task, 0).stored_in(Some(&job.slices()))?.skipping(task.train.skip_unreadable);
        let workers = Workers::new(&network, options.threads, options.threads)?;
        let indices: Vec<usize> = (0..table.samples.len()).collect();
        let chunk = task.train.chunk;
        let bar = bar(options.progress, indices.len(), "embeddings");
        let work = move |network: &Network, study: &Study| embed(network, study, chunk);
        let found =
            workers.over(&network.parameters, &indices, |i| cache.get(i), work, |n| bar.inc(n as u64))?;
        bar.finish_and_clear();
        keep(&path, &found)?;
        found
    };
    let started = Instant::now();
    let features: Vec<Option<Vec<f64>>> =
        pooled.into_iter().map(|found| found.map(|pooled| chosen(pooled, pooling))).collect();
    let head = LinearProbe::fit(table, task, &features);
    let seconds = started.elapsed().as_secs_f64();
    let parameters = head.count();
    Ok(Outcome {
        model: Box::new(Probe { network, chunk: task.train.chunk, pooling, head }),
        parameters,
        bytes: 4 * parameters as u64,
        best_epoch: None,
        seconds,
        notes: vec!["the time of its fit is that of the head on embeddings that are kept".into()],
        left_over: None,
    })
}

/// Embeddings that another cell left, of as many rows.
fn kept(path: &Path, rows: usize) -> Option<Vec<Option<Pooled>>> {
    let file = read_safetensors(path).ok()?;
    let [mean, median, read] = ["mean", "median", "read"].map(|name| file.tensors.get(name));
    let (mean, median, read) = (mean?, median?, read?);
    let width = mean.shape.get(1).copied().filter(|&width| width > 0)?;
    let of = |all: &Stored, row: usize| {
        all.data[row * width..(row + 1) * width].iter().copied().map(f64::from).collect()
    };
    let row =
        |row: usize| (read.data[row] > 0.0).then(|| Pooled { mean: of(mean, row), median: of(median, row) });
    (read.data.len() == rows && mean.data.len() == rows * width && median.data.len() == rows * width)
        .then(|| (0..rows).map(row).collect())
}

/// Leaves embeddings for other cells, in f32 as they were computed.
fn keep(path: &Path, found: &[Option<Pooled>]) -> Result<(), Error> {
    let width = found.iter().flatten().map(|pooled| pooled.mean.len()).next().unwrap_or(0);
    let table = |of: &dyn Fn(&Pooled) -> &[f64]| {
        let row = |found: &Option<Pooled>| match found {
            Some(pooled) => of(pooled).iter().map(|&x| x as f32).collect(),
            None => vec![0.0; width],
        };
        Stored { shape: vec![found.len(), width], data: found.iter().flat_map(row).collect() }
    };
    let read = found.iter().map(|found| f32::from(u8::from(found.is_some()))).collect();
    let tensors = [
        ("mean".to_owned(), table(&|pooled| &pooled.mean)),
        ("median".to_owned(), table(&|pooled| &pooled.median)),
        ("read".to_owned(), Stored { shape: vec![found.len()], data: read }),
    ];
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    runtime::files::write_atomically(path, &safetensors_bytes(&tensors.into(), None)).map_err(Error::io(path))
}
