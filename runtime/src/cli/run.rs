//! `scanside run`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use firmware_config::device::Device;
use runtime::service::Service;
use runtime::service::notify::Notifier;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Fault, config, say};

/// The service: receive series by DICOM, classify them, publish the results. SIGHUP reads the configuration again, SIGTERM
/// ends it in order.
#[derive(Args)]
pub struct Run {
    /// The configuration.
    #[arg(long, value_name = "device.toml")]
    config: PathBuf,
}

/// The job in hand is given so long at the end of the service; the unit gives two minutes for everything.
const GRACE: Duration = Duration::from_mins(1);
/// The service is looked at so often where systemd does not say.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Run {
    pub fn run(self) -> Result<(), Fault> {
        let device = config::load(&self.config)?;
        for caution in device.cautions() {
            tracing::warn!("{caution}");
        }
        let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let executor = executor.map_err(|source| Fault::Io {
            what: "start the signal handling of",
            path: "scanside".into(),
            source,
        })?;
        // Before anything runs: a signal that comes early must not end the process half-way.
        let mut signals = {
            let _context = executor.enter();
            Signals::new()?
        };
        let manager = Notifier::new(|name| std::env::var_os(name)).map_err(|source| Fault::Io {
            what: "reach the service manager behind",
            path: "NOTIFY_SOCKET".into(),
            source,
        })?;
        // Start and end block, so they are outside of what is asynchronous.
        let mut service = Service::start(device)?;
        if let Some(address) = service.address() {
            let title = &service.device().dicom.ae_title;
            say::message(&format!("scanside: listening for DICOM on {address} as {}", title.as_str()));
        }
        manager.ready();
        executor.block_on(self.watch(&mut service, &manager, &mut signals));
        tracing::info!("the service ends");
        manager.stopping();
        let fallen = service.fallen();
        service.stop(GRACE);
        match fallen {
            None => Ok(()),
            Some(part) => Err(Fault::Differs(format!(
                "the service ended because its part `{part}` had failed; its log says where"
            ))),
        }
    }

    /// Until it is told to end, or a part of it has failed.
    async fn watch(&self, service: &mut Service, manager: &Notifier, signals: &mut Signals) {
        let mut look = tokio::time::interval(manager.watchdog_interval().unwrap_or(LOOK_EVERY));
        loop {
            tokio::select! {
                _ = signals.hangup.recv() => {
                    manager.reloading();
                    self.reload(service);
                    manager.ready();
                }
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = look.tick() => match service.fallen() {
                    None => manager.alive(),
                    Some(_) => return,
                }
            }
        }
    }

    /// A configuration with a mistake changes nothing.
    fn reload(&self, service: &mut Service) {
        let outcome = config::load(&self.config)
            .and_then(|device: Device| service.reload(&device).map_err(Fault::from));
        match outcome {
            Ok(changes) => {
                tracing::info!(now = ?changes.now, "configuration read again");
                for key in changes.restart {
                    tracing::warn!(key, "the change waits for a restart");
                }
            }
            Err(fault) => tracing::error!(reason = fault.sentence(), "the configuration was not taken over"),
        }
    }
}

struct Signals {
    hangup: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Fault> {
        let of = |kind| {
            signal(kind).map_err(|source| Fault::Io {
                what: "watch signals in",
                path: "scanside".into(),
                source,
            })
        };
        Ok(Self {
            hangup: of(SignalKind::hangup())?,
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }
}
