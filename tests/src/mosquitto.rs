//! A real mosquitto on a free port of the loopback interface.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

/// A running broker; it ends when dropped.
pub struct Mosquitto {
    /// The port that it listens on.
    pub port: u16,
    process: Child,
    folder: TempDir,
}

impl Mosquitto {
    /// Starts a broker that lets everybody in.
    pub fn start() -> Result<Self> {
        Self::on(free_port()?, "allow_anonymous true")
    }

    /// Starts a broker on `port` with further lines of configuration; returns once it accepts connections.
    pub fn on(port: u16, configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        // Started by root, mosquitto turns into somebody else, who must be able to write here.
        let here = folder.path().display();
        fs::write(
            folder.path().join("mosquitto.conf"),
            format!(
                "user root\nlistener {port} 127.0.0.1\npersistence_location {here}/\nlog_dest file {here}/log\n\
                 {configuration}\n"
            ),
        )?;
        let process = launch(folder.path())?;
        let mut broker = Self { port, process, folder };
        broker.await_connections()?;
        Ok(broker)
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Ends it in the middle of whatever it does.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Ends it in an orderly way: with `persistence true` it writes down its sessions.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal("TERM")?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again after it ended; without `sessions`, it has forgotten everything.
    pub fn restart(&mut self, sessions: bool) -> Result<()> {
        let kept = self.folder.path().join("mosquitto.db");
        if !sessions && kept.exists() {
            fs::remove_file(kept)?;
        }
        self.process = launch(self.folder.path())?;
        self.await_connections()
    }

    /// Sends it a signal: `STOP` lets it stand still with all its connections, `CONT` go on.
    pub fn signal(&self, name: &str) -> Result<()> {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.process.id().to_string()).status()?;
        ensure!(status.success(), "mosquitto did not get the signal {name}");
        Ok(())
    }

    /// What it has written to its log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn await_connections(&mut self) -> Result<()> {
        for _ in 0..1000 {
            if let Some(status) = self.process.try_wait()? {
                let log = self.log();
                bail!("mosquitto ended with {status} instead of listening on port {}: {log}", self.port);
            }
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            sleep(Duration::from_millis(10));
        }
        bail!("mosquitto does not listen on port {}", self.port)
    }
}

fn launch(folder: &Path) -> Result<Child> {
    // Debian puts it where only root's search path leads.
    let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
    let program = program.into_iter().find(|p| Path::new(p).is_file()).unwrap_or("mosquitto");
    Command::new(program)
        .arg("-c")
        .arg(folder.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{program} cannot be started; `cargo xtask test` installs it"))
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A port on which nothing listens at present.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
