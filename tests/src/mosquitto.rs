//! A real mosquitto on a free port of the loopback interface.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

/// A running broker; it ends when dropped.
pub struct Mosquitto {
    /// The port that it listens on.
    pub port: u16,
    process: Child,
    _folder: TempDir,
}

impl Mosquitto {
    /// Starts a broker that lets everybody in.
    pub fn start() -> Result<Self> {
        Self::on(free_port()?, "allow_anonymous true")
    }

    /// Starts a broker on `port` with further lines of configuration; returns once it accepts connections.
    pub fn on(port: u16, configuration: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("mosquitto.conf");
        fs::write(
            &file,
            format!("listener {port} 127.0.0.1\npersistence false\nlog_dest none\n{configuration}\n"),
        )?;
        // Debian puts it where only root's search path leads.
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
        let program = program.into_iter().find(|p| Path::new(p).is_file()).unwrap_or("mosquitto");
        let process = Command::new(program)
            .arg("-c")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{program} cannot be started; `cargo xtask test` installs it"))?;
        let mut broker = Self { port, process, _folder: folder };
        for _ in 0..200 {
            if let Some(status) = broker.process.try_wait()? {
                bail!("{program} ended with {status} instead of listening on port {port}");
            }
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(broker);
            }
            sleep(Duration::from_millis(50));
        }
        bail!("{program} does not listen on port {port}")
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A port on which nothing listens at present.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
