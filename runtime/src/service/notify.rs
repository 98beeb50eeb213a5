//! What systemd is told of the service, over the datagram socket that it names in `NOTIFY_SOCKET` (sd_notify(3)).
//!
//! Where the service was not started by systemd, nothing is told and nothing is missing. The words are those of the crate sd-notify; the
//! socket is ours, since the crate's waits for a manager that does not read, and takes its name from the environment alone.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    way: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// The service manager that `variable` (in the service: [`std::env::var_os`]) knows of: `NOTIFY_SOCKET`, a path or an
    /// abstract name behind `@`, and with `WatchdogSec=` also `WATCHDOG_USEC` and `WATCHDOG_PID`.
    ///
    /// # Errors
    /// If a socket is named that cannot be one.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> io::Result<Self> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(&name)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not stop the service; the watchdog is for that.
        socket.set_nonblocking(true)?;
        let number = |name: &str| variable(name)?.to_str()?.parse::<u64>().ok();
        // A child of the service that inherited the variables is not the one to be watched.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&usec| ours && usec > 0).map(Duration::from_micros);
        Ok(Self { way: Some((socket, address)), watchdog })
    }

    /// How often [`Self::alive`] must be called: half of the time after which systemd ends the service. None where it
    /// does not watch.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|time| time / 2)
    }

    /// The service does its work, or does it again after [`Self::reloading`].
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// The configuration is being read again.
    pub fn reloading(&self) {
        // systemd compares the time with its own, so that an old message does not count for a new reload.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => tracing::warn!(%error, "systemd is not told of the reload, for want of a clock"),
        }
    }

    /// The service is about to end, on purpose.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// A sentence for `systemctl status`.
    pub fn status(&self, sentence: &str) {
        self.send(&[NotifyState::Status(&sentence.replace(['\n', '\r'], " "))]);
    }

    /// The service is alive: to be called at least every [`Self::watchdog_interval`], by whoever knows that it works.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some((socket, address)) = &self.way else { return };
        let message = states.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::warn!(%error, "systemd could not be told how the service is doing");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn notifier(variables: &[(&str, &str)]) -> io::Result<Notifier> {
        let all: BTreeMap<&str, &str> = variables.iter().copied().collect();
        Notifier::new(|name| all.get(name).map(OsString::from))
    }

    fn next(manager: &UnixDatagram) -> String {
        let mut buffer = [0; 1024];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_hears_what_happens_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap();
        assert_eq!(notifier.watchdog_interval(), None);
        notifier.status("starting\nslowly");
        notifier.ready();
        notifier.alive();
        notifier.reloading();
        notifier.reloading();
        notifier.stopping();
        assert_eq!(next(&manager), "STATUS=starting slowly");
        assert_eq!(next(&manager), "READY=1");
        assert_eq!(next(&manager), "WATCHDOG=1");
        let mut times = (0..2).map(|_| {
            let reloading = next(&manager);
            let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse::<u64>();
            usec.unwrap()
        });
        let (first, second) = (times.next().unwrap(), times.next().unwrap());
        assert!(first > 0 && (first..first + 20_000_000).contains(&second), "{first}, {second}");
        assert_eq!(next(&manager), "STOPPING=1");
    }

    #[test]
    fn an_abstract_socket_is_one_too() {
        let name = format!("scanside-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        manager.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        notifier(&[("NOTIFY_SOCKET", &format!("@{name}"))]).unwrap().ready();
        assert_eq!(next(&manager), "READY=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let silent = notifier(&[("WATCHDOG_USEC", "10000000")]).unwrap();
        assert_eq!(silent.watchdog_interval(), None);
        silent.ready();
        // One that is gone is told of in the log, no more.
        notifier(&[("NOTIFY_SOCKET", "/nonexistent/notify")]).unwrap().ready();
        assert!(notifier(&[("NOTIFY_SOCKET", &"x".repeat(200))]).is_err());
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_wants() {
        let here = std::process::id().to_string();
        let interval = |usec: &str, pid: &str| {
            let socket = ("NOTIFY_SOCKET", "/run/x");
            notifier(&[socket, ("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)]).unwrap().watchdog_interval()
        };
        assert_eq!(interval("30000000", &here), Some(Duration::from_secs(15)));
        assert_eq!(interval("30000000", "1"), None, "somebody else's");
        assert_eq!(interval("0", &here), None);
        assert_eq!(interval("soon", &here), None);
    }

    #[test]
    fn a_manager_that_does_not_read_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let notifier = notifier(&[("NOTIFY_SOCKET", path.to_str().unwrap())]).unwrap();
        for _ in 0..10_000 {
            notifier.alive();
        }
    }
}
