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

const HEATMAP: &str = "--heatmap";
const SLICES: &str = "--slices";

/// Classify a scan: one result JSON a line on stdout, one line a series.
#[derive(Args)]
pub struct Infer {
    #[command(flatten)]
    task: TaskArgs,
    #[command(flatten)]
    scan: ScanArgs,
    /// Write where the network looked, as a volume in the scan's space; of a task of several views OUT-VIEW.nii.gz for each, as
    /// with the other files.
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
        let views: Vec<&str> = task.plugin.manifest.views.keys().map(String::as_str).collect();
        if !views.is_empty() {
            let (volumes, read) = timed(|| self.scan.study(&views))?;
            let volumes: Vec<_> = volumes.iter().map(Option::as_ref).collect();
            let result = self.one(&task, &volumes, &device)?;
            return self.give(result, [("load", load), ("read", read)], broker.as_ref(), &device);
        }
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
            let outcome =
                scan.map_err(Fault::from).and_then(|volume| self.one(&task, &[Some(&volume)], &device));
            match outcome {
                Ok(result) => {
                    self.give(result, [("load", load), ("read", read)], broker.as_ref(), &device)?;
                }
                // A series that cannot be used does not keep the others from being classified.
                Err(fault) if fault.is_bad_input() && all > 1 => {
                    say::message(&format!("scanside: {}", fault.sentence()));
                    refused += 1;
                }
                Err(fault) => return Err(fault),
            }
        }
        if refused > 0 { Err(Fault::Series { refused, all }) } else { Ok(()) }
    }

    /// Prints a result, and publishes it; `before` is what was done before its volumes were there.
    fn give(
        &self,
        mut result: TaskResult,
        before: [(&str, Duration); 2],
        broker: Option<&Endpoint>,
        device: &TopicLevel,
    ) -> Result<(), Fault> {
        let before = before.map(|(name, time)| (name.to_owned(), milliseconds(time)));
        let total = before.iter().map(|(_, time)| time).chain(result.timings_ms.values()).sum();
        result.timings_ms.extend(before.into_iter().chain([("total".into(), total)]));
        for warning in &result.warnings {
            say::message(&format!("scanside: warning: {warning}"));
        }
        say::line(&result.to_json())?;
        broker.map_or(Ok(()), |broker| self.send(broker, device, &result))
    }

    /// Every file that is to be written, with its flag and the endings that its name may have.
    fn outputs(&self) -> impl Iterator<Item = (&'static str, &Path, &'static [&'static str])> {
        let all: [(_, _, &[&str]); 3] = [
            (HEATMAP, &self.heatmap, &[".nii.gz", ".nii"]),
            ("--picture", &self.picture, &[".png"]),
            (SLICES, &self.slices, &[".npy"]),
        ];
        all.into_iter().filter_map(|(flag, path, endings)| Some((flag, path.as_deref()?, endings)))
    }

    /// Classifies a volume, or one for each view.
    fn one(
        &self,
        task: &LoadedTask,
        volumes: &[Option<&Volume>],
        device: &TopicLevel,
    ) -> Result<TaskResult, Fault> {
        let context = Context::given(device.as_str().into(), SystemTime::now());
        let (prepared, prepare) = timed(|| Ok(task.prepare_views(volumes)?))?;
        let bar = progress(prepared.iter().flatten().map(Prepared::slices).sum());
        let given: Vec<_> = prepared.iter().map(Option::as_ref).collect();
        let (classified, encode) = timed(|| Ok(task.classify(&given, &context, &|| bar.inc(1))?))?;
        bar.finish_and_clear();
        let pictures = timed(|| {
            let views = given.iter().enumerate();
            views
                .filter_map(|(k, prepared)| Some((k, (*prepared)?)))
                .try_for_each(|(view, prepared)| self.write(task, view, prepared, &classified))
        })?
        .1;
        let mut result = classified.result;
        result.timings_ms.extend([
            ("prepare".into(), milliseconds(prepare)),
            ("encode".into(), milliseconds(encode)),
            ("pictures".into(), milliseconds(pictures)),
        ]);
        Ok(result)
    }

    /// Writes the files that are asked for of one view.
    fn write(
        &self,
        task: &LoadedTask,
        number: usize,
        prepared: &Prepared<'_>,
        classified: &Classification,
    ) -> Result<(), Fault> {
        let Classification { result, output } = classified;
        let (view, found) = (&task.engine.views()[number], &output.views[number]);
        for (flag, path, endings) in self.outputs() {
            let path = &outputs::of_view(path, view.name.as_deref(), endings);
            match flag {
                HEATMAP => heatmap::write(path, prepared, &found.heatmap, view.grid)?,
                SLICES => outputs::write_slices(path, prepared)?,
                _ => {
                    let labels: Vec<_> =
                        result.labels.iter().map(|l| (l.name.as_str(), l.probability)).collect();
                    let picture = picture::Picture {
                        task: &result.task.name,
                        version: &result.task.version,
                        labels: &labels,
                        prepared,
                        slice_weights: &found.slice_weights,
                        heatmap: &found.heatmap,
                        grid: view.grid,
                    };
                    picture::write(path, &picture)?;
                }
            }
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
