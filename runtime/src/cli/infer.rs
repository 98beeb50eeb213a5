//! `scanside infer`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use runtime::infer::{Classification, Context, LoadedTask};
use runtime::publish::{Broker, Credentials, Endpoint, Message, Patience, TopicLevel, publish};
use runtime::recipe::Prepared;
use runtime::report::{heatmap, picture};
use runtime::result::{TaskResult, UidForm};
use runtime::volume::Volume;

use super::task::{ScanArgs, TaskArgs, default_device};
use super::{Fault, outputs, say};

/// Classify a scan: one result JSON a line on stdout, one line a series.
#[derive(Args)]
pub struct Infer {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    scan: ScanArgs,
    /// Write where the network looked, as a volume in the scan's space.
    #[arg(long, value_name = "OUT.nii.gz")]
    heatmap: Option<PathBuf>,
    /// Write a montage of the key slices with the heat map over them.
    #[arg(long, value_name = "OUT.png")]
    picture: Option<PathBuf>,
    /// Write the preprocessed slices `[S, 3, H, W]` that the network was given.
    #[arg(long, value_name = "OUT.npy")]
    slices: Option<PathBuf>,
    /// Also publish to an MQTT broker, and wait for its acknowledgement.
    #[arg(long, value_name = "mqtt[s]://HOST:PORT")]
    publish: Option<Broker>,
    /// The authority that the broker's certificate comes from, for mqtts.
    #[arg(long, value_name = "CA.pem", requires = "publish")]
    publish_ca: Option<PathBuf>,
    /// The site's name, part of the MQTT topic.
    #[arg(long, default_value = "local")]
    site: TopicLevel,
    /// This device's name, part of the result and of the MQTT topic; the host's name if not given.
    #[arg(long)]
    device: Option<TopicLevel>,
}

impl Infer {
    pub fn run(self) -> Result<(), Fault> {
        for (flag, path, endings) in self.outputs() {
            outputs::check(flag, path, endings)?;
        }
        let device = self.device.clone().unwrap_or_else(default_device);
        let broker = self.publish.as_ref().map(|broker| self.endpoint(broker)).transpose()?;
        let (task, load) = timed(|| self.task.load())?;
        let (mut scans, open) = timed(|| self.scan.open())?;
        let all = scans.len();
        if all > 1
            && let Some((flag, ..)) = self.outputs().next()
        {
            return Err(Fault::Usage(format!(
                "{flag} names one file, but the input holds {all} series; give one series at a time"
            )));
        }
        let mut refused = 0;
        loop {
            let start = Instant::now();
            let Some(scan) = scans.next() else { break };
            let read = open + start.elapsed();
            let outcome = scan.map_err(Fault::from).and_then(|volume| self.one(&task, &volume, &device));
            let mut result = match outcome {
                Ok(result) => result,
                // A series that cannot be used does not keep the others from being classified.
                Err(fault) if fault.is_bad_input() && all > 1 => {
                    say::message(&format!("scanside: {}", fault.sentence()));
                    refused += 1;
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let total = load + open + start.elapsed();
            result.timings_ms.extend([
                ("load".into(), milliseconds(load)),
                ("read".into(), milliseconds(read)),
                ("total".into(), milliseconds(total)),
            ]);
            for warning in &result.warnings {
                say::message(&format!("scanside: warning: {warning}"));
            }
            say::line(&result.to_json())?;
            if let Some(broker) = &broker {
                self.send(broker, &device, &result)?;
            }
        }
        if refused > 0 { Err(Fault::Series { refused, all }) } else { Ok(()) }
    }

    /// Every file that is to be written, with its flag and the endings that its name may have.
    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path, &'static [&'static str])> {
        let all: [(_, _, &[&str]); 3] = [
            ("--heatmap", &self.heatmap, &[".nii.gz", ".nii"]),
            ("--picture", &self.picture, &[".png"]),
            ("--slices", &self.slices, &[".npy"]),
        ];
        all.into_iter().filter_map(|(flag, path, endings)| Some((flag, path.as_deref()?, endings)))
    }

    fn one(&self, task: &LoadedTask, volume: &Volume, device: &TopicLevel) -> Result<TaskResult, Fault> {
        let context = Context { device: device.as_str().into(), created: SystemTime::now() };
        let (prepared, prepare) = timed(|| Ok(task.prepare(volume)?))?;
        let bar = progress(prepared.slices());
        let (classified, encode) = timed(|| {
            let classify = |observe: outputs::Observe<'_>| {
                task.classify(&prepared, &context, &|s, slice| {
                    observe(s, slice);
                    bar.inc(1);
                })
            };
            match &self.slices {
                Some(path) => outputs::with_slices(path, prepared.slices(), prepared.size(), classify),
                None => Ok(classify(&|_, _| {})?),
            }
        })?;
        bar.finish_and_clear();
        let pictures = timed(|| self.draw(task, &prepared, &classified))?.1;
        let mut result = classified.result;
        result.timings_ms.extend([
            ("prepare".into(), milliseconds(prepare)),
            ("encode".into(), milliseconds(encode)),
            ("pictures".into(), milliseconds(pictures)),
        ]);
        Ok(result)
    }

    fn draw(
        &self,
        task: &LoadedTask,
        prepared: &Prepared<'_>,
        classified: &Classification,
    ) -> Result<(), Fault> {
        let (Classification { result, output }, grid) = (classified, task.engine.grid());
        if let Some(path) = &self.heatmap {
            heatmap::write(path, prepared, &output.heatmap, grid)?;
        }
        if let Some(path) = &self.picture {
            let labels: Vec<_> = result.labels.iter().map(|l| (l.name.as_str(), l.probability)).collect();
            let picture = picture::Picture {
                task: &result.task.name,
                version: &result.task.version,
                labels: &labels,
                prepared,
                slice_weights: &output.slice_weights,
                heatmap: &output.heatmap,
                grid,
            };
            picture::write(path, &picture)?;
        }
        Ok(())
    }

    /// Before any work is done, so that a broker that cannot be reached this way leaves no result behind.
    fn endpoint(&self, broker: &Broker) -> Result<Endpoint, Fault> {
        let credentials = Credentials { ca: self.publish_ca.as_deref(), ..Credentials::default() };
        Ok(Endpoint::new(broker.clone(), &credentials)?)
    }

    fn send(&self, endpoint: &Endpoint, device: &TopicLevel, result: &TaskResult) -> Result<(), Fault> {
        let broker = endpoint.broker();
        let uids = if broker.is_private() { UidForm::Plain } else { UidForm::LeftOut };
        let message = Message::result(result, &self.site, device, uids);
        // Unique to device, task and scan, so that no other client is thrown out; 23 characters always pass.
        let id = format!("scanside-{}", &result.result_id[..14]);
        let start = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let executor = start.map_err(|source| Fault::Io {
            what: "start the network side of",
            path: "scanside".into(),
            source,
        })?;
        let (topic, messages) = (message.topic.clone(), [message]);
        executor.block_on(publish(endpoint, &id, &messages, &Patience::default()))?;
        say::message(&format!("scanside: published to {broker} as {topic}, acknowledged"));
        Ok(())
    }
}

/// Shown on a terminal only.
fn progress(slices: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} slices, {eta} left");
    ProgressBar::new(slices as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn timed<T>(work: impl FnOnce() -> Result<T, Fault>) -> Result<(T, Duration), Fault> {
    let start = Instant::now();
    Ok((work()?, start.elapsed()))
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}
