//! The service's one connection to its broker: it lasts as long as the service and comes back whenever it is lost.
//!
//! On each connection the birth comes first (`state`, retained; the Will says that the device is gone), then every row of
//! the [`Outbox`], which goes when its own PUBACK has come. What the broker refuses stays, is told in [`Status`], and is
//! offered again later; it holds up nothing. A broker that stops answering is left after a deadline. The memory in use does not
//! depend on the number of rows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use firmware_config::device::{Device, Mqtt};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::error::End;
use super::link::{Happened, Hello, Link};
use super::outbox::Drain;
use super::{Endpoint, Message, Outbox, Patience, Presence, PublishError, endpoint, topic};

/// What is published besides the outbox's rows.
pub struct Options {
    /// The broker.
    pub endpoint: Endpoint,
    /// The client identifier, this device's alone: a broker throws out the elder of two clients of one name.
    pub client_id: String,
    /// A sign of life is sent when nothing else was said for half of this time.
    pub keep_alive: Duration,
    /// The topic of the state, and its payload.
    pub state: (String, Payload<Presence>),
    /// The topic of the health messages, and their payload.
    pub health: (String, Payload<()>),
    /// How long to wait for what; `attempts` does not count.
    pub patience: Patience,
    /// Of the pauses between connections, so that a hospital's devices do not all come back in the same instant.
    pub seed: u64,
}

impl Options {
    /// As the configuration says, with the files that it names read.
    pub fn of(
        device: &Device,
        state: Payload<Presence>,
        health: Payload<()>,
        seed: u64,
    ) -> Result<Self, PublishError> {
        let (site, name) = (&device.site, &device.device);
        Ok(Self {
            endpoint: endpoint(&device.mqtt)?,
            client_id: format!("scanside-{site}-{name}"),
            keep_alive: device.mqtt.keep_alive,
            state: (topic(site, name, "state"), state),
            health: (topic(site, name, "health"), health),
            patience: Patience::default(),
            seed,
        })
    }
}

/// Makes a payload.
pub type Payload<T> = Box<dyn Fn(T) -> Vec<u8> + Send + Sync>;

/// How often and for how long health messages count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// The time between two.
    pub interval: Duration,
    /// A message that could not be delivered for so long is dropped by the broker.
    pub expiry: Duration,
}

impl From<&Mqtt> for Health {
    fn from(mqtt: &Mqtt) -> Self {
        Self { interval: mqtt.health_interval, expiry: mqtt.health_expiry }
    }
}

/// How the session is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether a connection stands.
    pub connected: bool,
    /// Connections that stood, in all.
    pub connections: u64,
    /// Rows acknowledged, in all.
    pub delivered: u64,
    /// Those of them, in all, that nobody had subscribed to: the broker had nobody to give them to.
    pub unheard: u64,
    /// Rows that the broker does not take at present.
    pub refused: u64,
    /// What ended the last connection or attempt, or why rows are refused; none while all is well.
    pub trouble: Option<String>,
}

struct Shared {
    wake: Notify,
    announce: Notify,
    stop: Notify,
    status: Mutex<Status>,
    health: Mutex<Health>,
}

/// What the rest of the service holds of the session.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Tells that a row was added.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Publishes the state again, because its payload has changed.
    pub fn announce(&self) {
        self.0.announce.notify_one();
    }

    /// Changes how often health is told, from the next message on.
    pub fn set_health(&self, health: Health) {
        *lock(&self.0.health) = health;
    }

    /// Lets [`Session::run`] end: what is on its way is waited for, then the death is published.
    pub fn shut_down(&self) {
        self.0.stop.notify_one();
    }

    /// How the session is doing.
    pub fn status(&self) -> Status {
        lock(&self.0.status).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session that has not begun.
pub struct Session<O: Outbox> {
    options: Options,
    outbox: Arc<O>,
    shared: Arc<Shared>,
}

/// What interrupts a wait.
enum Call {
    Wake,
    Announce,
    Stop,
}

impl<O: Outbox> Session<O> {
    /// Connects nowhere yet.
    pub fn new(options: Options, outbox: Arc<O>, health: Health) -> (Self, Handle) {
        let shared = Arc::new(Shared {
            wake: Notify::new(),
            announce: Notify::new(),
            stop: Notify::new(),
            status: Mutex::default(),
            health: Mutex::new(health),
        });
        (Self { options, outbox, shared: shared.clone() }, Handle(shared))
    }

    /// Publishes until [`Handle::shut_down`].
    pub async fn run(self) {
        let patience = &self.options.patience;
        let mut jitter = Jitter(self.options.seed);
        let mut pause = patience.pause;
        loop {
            let begun = Instant::now();
            let Err(end) = self.connection().await else { return };
            let broker = &self.options.endpoint.broker;
            tracing::warn!(%broker, reason = %end, "no connection to the broker");
            self.status(|status| {
                status.connected = false;
                status.trouble = Some(end.to_string());
            });
            // A connection that lasted was a good one.
            if begun.elapsed() > pause + patience.connect {
                pause = patience.pause;
            }
            tokio::select! {
                () = self.shared.stop.notified() => return,
                () = sleep(jitter.of(pause)) => {}
            }
            pause = (pause * 2).min(patience.longest_pause);
        }
    }

    /// One connection; Ok when the session has ended on purpose.
    async fn connection(&self) -> Result<(), End> {
        let hello = self.hello();
        let opened = tokio::select! {
            () = self.shared.stop.notified() => return Ok(()),
            link = Link::open(&self.options.endpoint, &hello, &self.options.patience) => link,
        };
        let mut link = opened?;
        link.publish(None, self.state(Presence::Online), true).await?;
        self.status(|status| {
            (status.connected, status.trouble) = (true, None);
            status.connections += 1;
        });
        tracing::info!(broker = %self.options.endpoint.broker, "connected to the broker");

        let mut drain = Drain::new(self.outbox.clone());
        let mut health = Instant::now();
        let (mut again, mut changed) = (None, false);
        loop {
            if changed && link.room() > 0 {
                link.publish(None, self.state(Presence::Online), true).await?;
                changed = false;
            }
            drain.fill(&mut link).await?;
            let now = Instant::now();
            if now >= health {
                let Health { interval, expiry } = *lock(&self.shared.health);
                link.tell(self.health(), expiry).await?;
                health = now + interval;
            }
            // Refused rows are offered again when the pause between connections would be over too.
            if drain.refused() > 0 && again.is_none() {
                again = Some(now + self.options.patience.longest_pause);
            }
            let until = again.map_or(health, |again: Instant| again.min(health));
            match link.wait(self.call(), until).await? {
                Happened::Settled(settled) => {
                    let unheard = settled.unheard;
                    let count = drain.settle(settled).await?;
                    self.status(|status| {
                        status.delivered += count;
                        status.unheard += unheard;
                        status.refused = drain.refused();
                        status.trouble = drain.refusal().map(Into::into);
                    });
                }
                Happened::Other(Call::Stop) => {
                    // Where the broker does not let us take leave, its Will says what the death would have said.
                    if let Err(end) = self.depart(link, drain).await {
                        tracing::warn!(reason = %end, "the broker was lost while taking leave of it");
                    }
                    self.status(|status| status.connected = false);
                    return Ok(());
                }
                Happened::Other(Call::Announce) => changed = true,
                Happened::Other(Call::Wake) | Happened::Due => {}
            }
            if again.is_some_and(|again| Instant::now() >= again) {
                drain.rewind();
                again = None;
            }
        }
    }

    /// Waits for what is on its way, publishes the death and leaves; all that within the time of two acknowledgements.
    async fn depart(&self, mut link: Link, mut drain: Drain<O>) -> Result<(), End> {
        let until = Instant::now() + self.options.patience.acknowledge;
        self.finish(&mut link, &mut drain, until).await?;
        link.publish(None, self.state(Presence::Leaving), true).await?;
        self.finish(&mut link, &mut drain, until + self.options.patience.acknowledge).await?;
        link.leave().await;
        Ok(())
    }

    async fn finish(&self, link: &mut Link, drain: &mut Drain<O>, until: Instant) -> Result<(), End> {
        while !link.is_idle() {
            match link.wait(std::future::pending::<()>(), until).await? {
                Happened::Settled(settled) => {
                    let unheard = settled.unheard;
                    let count = drain.settle(settled).await?;
                    self.status(|status| {
                        status.delivered += count;
                        status.unheard += unheard;
                    });
                }
                Happened::Other(()) | Happened::Due => break,
            }
        }
        Ok(())
    }

    async fn call(&self) -> Call {
        tokio::select! {
            () = self.shared.stop.notified() => Call::Stop,
            () = self.shared.announce.notified() => Call::Announce,
            () = self.shared.wake.notified() => Call::Wake,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            client_id: self.options.client_id.clone(),
            keep_alive: self.options.keep_alive,
            will: Some(self.state(Presence::Lost)),
        }
    }

    fn state(&self, presence: Presence) -> Message {
        let (topic, payload) = &self.options.state;
        Message { topic: topic.clone(), payload: payload(presence) }
    }

    fn health(&self) -> Message {
        let (topic, payload) = &self.options.health;
        Message { topic: topic.clone(), payload: payload(()) }
    }

    fn status(&self, change: impl FnOnce(&mut Status)) {
        change(&mut lock(&self.shared.status));
    }
}

/// Pauses between half and all of what is asked (SplitMix64).
pub(super) struct Jitter(pub u64);

impl Jitter {
    pub fn of(&mut self, pause: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        pause.mul_f64(0.5 + (z >> 11) as f64 / (1u64 << 54) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_but_never_by_more_than_half() {
        let mut jitter = Jitter(7);
        let all: Vec<Duration> = (0..1000).map(|_| jitter.of(Duration::from_secs(10))).collect();
        assert!(all.iter().all(|p| (5.0..=10.0).contains(&p.as_secs_f64())));
        let mean = all.iter().map(Duration::as_secs_f64).sum::<f64>() / 1000.0;
        assert!((7.3..7.7).contains(&mean), "{mean}");
        assert_ne!(Jitter(1).of(Duration::from_secs(10)), Jitter(2).of(Duration::from_secs(10)));
    }
}
