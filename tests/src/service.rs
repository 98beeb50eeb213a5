//! A box: `scanside run` with a configuration, a store and a plugin of its own, started, killed and started again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dicom_object::InMemDicomObject;
use runtime::result::TaskResult;
use runtime::volume::{AxisCodes, Volume};
use tempfile::TempDir;

use crate::dicom::{SeriesOptions, write_edited};
use crate::fixture::Fixture;
use crate::mosquitto::Mosquitto;
use crate::programs::{Outcome, program, run};
use crate::scanner::{self, dcmtk};
use crate::subscriber::{Received, Subscriber};

/// What a box may take for anything, under emulation too.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// A box; its process, if one runs, is killed when it is dropped.
pub struct EdgeBox {
    folder: TempDir,
    broker: String,
    backbone: PathBuf,
    process: Option<Running>,
}

struct Running {
    child: Child,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
    address: SocketAddr,
}

impl EdgeBox {
    /// A box without plugins, which publishes to the broker of this URL. `extra` goes to the end of its configuration.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn new(broker: &str, fixture: &Fixture, extra: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let this =
            Self { folder, broker: broker.to_owned(), backbone: fixture.backbone.clone(), process: None };
        this.configure(extra)?;
        Ok(this)
    }

    /// As [`Self::new`], with the fixture's plugin installed and active.
    ///
    /// # Errors
    /// Where the plugin does not go live.
    pub fn with_plugin(broker: &str, fixture: &Fixture, extra: &str) -> Result<Self> {
        let this = Self::new(broker, fixture, extra)?;
        this.install(&fixture.plugin)?;
        Ok(this)
    }

    /// Writes its configuration anew.
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn configure(&self, extra: &str) -> Result<()> {
        let text = format!(
            "site = \"north\"\ndevice = \"ct-2\"\ndata_dir = \"{}\"\nbackbone = \"{}\"\nthreads = 2\n\
             dicom.ae_title = \"SCANSIDE\"\ndicom.listen = \"127.0.0.1:0\"\nmqtt.url = {:?}\n\
             http.listen = \"127.0.0.1:0\"\nstore.min_free = \"1MB\"\n{extra}\n",
            self.data().display(),
            self.backbone.display(),
            self.broker
        );
        Ok(fs::write(self.config(), text)?)
    }

    /// Installs and activates a plugin by the command line.
    ///
    /// # Errors
    /// Where it does not go live.
    pub fn install(&self, plugin: &Path) -> Result<()> {
        self.plugin(&["install", &plugin.display().to_string()])?;
        self.plugin(&["activate", "lesion"])?;
        Ok(())
    }

    /// `scanside plugin WORDS --config …`.
    ///
    /// # Errors
    /// Where it does not succeed.
    pub fn plugin(&self, words: &[&str]) -> Result<Outcome> {
        let outcome = run(program("scanside").arg("plugin").args(words).arg("--config").arg(self.config()));
        ensure!(outcome.code == Some(0), "scanside plugin {words:?}: {outcome:?}");
        Ok(outcome)
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("device.toml")
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the service; returns once it listens.
    ///
    /// # Errors
    /// Where it ends instead, with what it said.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(&[])
    }

    /// As [`Self::start`], with variables in its environment.
    ///
    /// # Errors
    /// Where it ends instead, with what it said.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut command = program("scanside");
        command.arg("run").arg("--config").arg(self.config());
        command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log: Arc<(Mutex<Vec<String>>, Condvar)> = Arc::default();
        let lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let write = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                write.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                write.1.notify_all();
            }
        });
        let mut running = Running { child, log, address: SocketAddr::from(([0; 4], 0)) };
        let line = running.await_line("scanside: listening for DICOM on ")?;
        let address = line.split_whitespace().nth(5).context("no address")?;
        running.address = address.parse().with_context(|| line.clone())?;
        self.process = Some(running);
        Ok(())
    }

    /// Starts the service and pulls the plug after so long, wherever it has got to.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start_and_kill(&self, after: Duration) -> Result<()> {
        let mut command = program("scanside");
        command.arg("run").arg("--config").arg(self.config()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        thread::sleep(after);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Where it listens for DICOM.
    ///
    /// # Panics
    /// Where it does not run.
    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    /// The answer to `GET path` over HTTP, head and all.
    ///
    /// # Errors
    /// Where none comes.
    pub fn get(&mut self, path: &str) -> Result<String> {
        use std::io::{Read as _, Write as _};
        let line = self.await_line("answering /healthz and /metrics")?;
        let address = line.rsplit("address=").next().unwrap_or_default();
        let mut stream = std::net::TcpStream::connect(address.trim()).with_context(|| line.clone())?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: box\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The process identifier.
    pub fn pid(&self) -> u32 {
        self.running().child.id()
    }

    fn running(&self) -> &Running {
        self.process.as_ref().expect("the service runs")
    }

    /// The first line of its log that contains `part`, which must come.
    ///
    /// # Errors
    /// Where it does not come, or the process ends; with all that was said.
    pub fn await_line(&mut self, part: &str) -> Result<String> {
        self.process.as_mut().context("the service does not run")?.await_line(part)
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.running().log.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pulls the plug.
    ///
    /// # Errors
    /// Where it had ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut running) = self.process.take() else { bail!("the service does not run") };
        if let Some(status) = running.child.try_wait()? {
            bail!("the service ended with {status} before it was killed: {}", running.said());
        }
        running.child.kill()?;
        running.child.wait()?;
        Ok(())
    }

    /// Sends it a signal by name.
    ///
    /// # Errors
    /// Where there is no such process.
    pub fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid().to_string();
        let status = std::process::Command::new("kill").arg(format!("-{name}")).arg(pid).status()?;
        ensure!(status.success(), "the service did not get the signal {name}");
        Ok(())
    }

    /// Ends it in order; all that it said.
    ///
    /// # Errors
    /// Where it does not end, or not well.
    pub fn terminate(&mut self) -> Result<String> {
        self.signal("TERM")?;
        let Some(mut running) = self.process.take() else { bail!("the service does not run") };
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            if let Some(status) = running.child.try_wait()? {
                ensure!(status.success(), "the service ended with {status}: {}", running.said());
                return Ok(running.said());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the service does not end: {}", running.said())
    }

    /// Opens its store, which no process may have open.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn store(&self) -> Result<runtime::store::Store> {
        let limits = runtime::store::Limits { max_bytes: u64::MAX, min_free_bytes: 0, max_tries: 3 };
        let (store, recovery) = runtime::store::Store::open(&self.data().join("store"), limits)?;
        ensure!(recovery.missing.is_empty(), "acknowledged instances are missing: {recovery:?}");
        Ok(store)
    }
}

impl Running {
    fn said(&self) -> String {
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    fn await_line(&mut self, part: &str) -> Result<String> {
        let until = Instant::now() + PATIENCE;
        loop {
            {
                let log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
                let wait = Duration::from_millis(50);
                let log = self.log.1.wait_timeout(log, wait).unwrap_or_else(PoisonError::into_inner).0;
                if let Some(line) = log.iter().find(|line| line.contains(part)) {
                    return Ok(line.clone());
                }
            }
            if let Some(status) = self.child.try_wait()? {
                // What it said last may still be under way.
                thread::sleep(Duration::from_millis(200));
                bail!("the service ended with {status}: {}", self.said());
            }
            ensure!(Instant::now() < until, "no line with {part:?}: {}", self.said());
        }
    }
}

impl Drop for EdgeBox {
    fn drop(&mut self) {
        if let Some(mut running) = self.process.take() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

/// A broker, a box with the plugin of a fixture, somebody who listens, and a folder for a scanner's files.
pub struct Site {
    /// The broker.
    pub broker: Mosquitto,
    /// The task.
    pub fixture: Fixture,
    /// Gets everything that the box publishes.
    pub subscriber: Subscriber,
    /// The box; it does not run yet.
    pub on: EdgeBox,
    /// For [`series`].
    pub files: TempDir,
}

impl Site {
    /// With [`Fixture::for_a_service`] and `extra` at the end of the box's configuration.
    ///
    /// # Errors
    /// Where the machine fails.
    pub fn new(extra: &str) -> Result<Self> {
        Self::with(Fixture::for_a_service(|_| ()), extra)
    }

    /// With another task.
    ///
    /// # Errors
    /// Where the machine fails.
    pub fn with(fixture: Fixture, extra: &str) -> Result<Self> {
        let broker = Mosquitto::start()?;
        let subscriber = Subscriber::new(broker.port, "scanside/v1/north/ct-2/#")?;
        let on = EdgeBox::with_plugin(&broker.url(), &fixture, extra)?;
        Ok(Self { broker, fixture, subscriber, on, files: TempDir::new()? })
    }

    /// As [`Self::new`], and the box runs.
    ///
    /// # Errors
    /// Where it does not start.
    pub fn started(extra: &str) -> Result<Self> {
        let mut site = Self::new(extra)?;
        site.on.start()?;
        Ok(site)
    }

    /// A scanner's files, see [`series`].
    ///
    /// # Errors
    /// Where the disk fails.
    pub fn series(&self, number: usize, dims: [usize; 3]) -> Result<Vec<PathBuf>> {
        series(self.files.path(), number, dims, |_, _| ())
    }

    /// Sends files over one association; whether all were acknowledged, and what the scanner said.
    ///
    /// # Errors
    /// Where there is no `storescu`.
    pub fn send(&self, files: &[PathBuf]) -> Result<(bool, String)> {
        scanner::run(dcmtk("storescu", self.on.address(), &[]).args(files))
    }

    /// The next result, see [`next_result`].
    ///
    /// # Errors
    /// Where none comes.
    pub fn next(&self) -> Result<TaskResult> {
        Ok(next_result(&self.subscriber)?.1)
    }
}

/// The Series Instance UID of a number.
pub fn series_uid(number: usize) -> String {
    format!("1.2.826.0.1.3680043.10.99.{number}")
}

/// Writes an MR series of made-up voxels, no two slices alike, into a folder of its own; its files in the order of its slices. `edit`
/// may change each slice.
///
/// # Errors
/// Where the disk fails.
pub fn series(
    folder: &Path,
    number: usize,
    dims: [usize; 3],
    edit: impl FnMut(usize, &mut InMemDicomObject),
) -> Result<Vec<PathBuf>> {
    series_along("LPS", folder, number, dims, edit)
}

/// As [`series`], whose axes lie as `codes` say; the third is the one across the slices.
///
/// # Errors
/// Where the disk fails.
pub fn series_along(
    codes: &str,
    folder: &Path,
    number: usize,
    dims: [usize; 3],
    edit: impl FnMut(usize, &mut InMemDicomObject),
) -> Result<Vec<PathBuf>> {
    let slice = dims[0] * dims[1];
    let voxel = |n: usize| ((n * 7 + n / slice * 131 + number * 17) % 1000) as f32;
    let voxels = (0..dims.iter().product()).map(voxel).collect();
    let codes: AxisCodes = codes.parse()?;
    let volume = Volume::from_parts(dims, voxels, codes.centred([2.0, 2.0, 4.0], dims));
    let place = folder.join(number.to_string());
    fs::create_dir(&place)?;
    let options = SeriesOptions { series_uid: series_uid(number), ..SeriesOptions::default() };
    write_edited(&place, &volume, &options, edit)?;
    let files = fs::read_dir(place)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>();
    let mut files = files?;
    files.sort();
    Ok(files)
}

/// Checks that everything that a service's result says of a scan is what `infer` says, to the last bit.
///
/// # Panics
/// Where it is not.
pub fn assert_same(service: &TaskResult, offline: &TaskResult) {
    let mut expected = offline.clone();
    expected.created.clone_from(&service.created);
    expected.timings_ms.clone_from(&service.timings_ms);
    expected.input.completion = service.input.completion;
    assert_eq!(*service, expected);
}

/// The next result that a subscriber gets; states and health messages are passed over.
///
/// # Errors
/// Where none comes.
pub fn next_result(subscriber: &Subscriber) -> Result<(Received, TaskResult)> {
    loop {
        let message = subscriber.next(PATIENCE)?;
        let level = message.topic.split('/').nth(4).unwrap_or_default();
        if ["result", "refused", "preliminary", "shadow"].contains(&level) {
            let result = serde_json::from_slice(&message.payload).with_context(|| message.topic.clone())?;
            return Ok((message, result));
        }
    }
}
