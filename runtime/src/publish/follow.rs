//! A connection for what comes from the broker: what an operator wants, and the blocks of a repository.
//!
//! It is another connection than the results' ([`super::session`]), so that a megabyte of updates never stands before a result.
//! The device pulls: a retained message comes when its topic is subscribed to, and the subscription is then taken back.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::error::End;
use super::link::{Happened, Hello, Link, Settled};
use super::session::Jitter;
use super::{Endpoint, Message, Patience};

/// What is followed, and what is said.
pub struct Options {
    /// The broker.
    pub endpoint: Endpoint,
    /// The client identifier, this connection's alone.
    pub client_id: String,
    /// A sign of life is sent when nothing else was said for half of this time.
    pub keep_alive: Duration,
    /// The topic whose messages go to the receiver; none where only retained messages are fetched.
    pub listen: Option<String>,
    /// The topic of what [`Handle::report`] says, retained.
    pub report: String,
    /// How long to wait for what; `attempts` does not count.
    pub patience: Patience,
    /// Of the pauses between connections.
    pub seed: u64,
}

struct Request {
    topic: String,
    wait: Duration,
    answer: oneshot::Sender<Result<Option<Vec<u8>>, String>>,
}

struct Asked {
    until: Instant,
    answer: oneshot::Sender<Result<Option<Vec<u8>>, String>>,
}

struct Shared {
    report: Mutex<Option<Vec<u8>>>,
    reported: Notify,
    stop: Notify,
}

/// What the rest of the program holds of the connection.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    requests: mpsc::UnboundedSender<Request>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a connection to the broker")
    }
}

impl Handle {
    /// Publishes `payload`, retained, now or as soon as a connection stands; only the latest counts.
    pub fn report(&self, payload: Vec<u8>) {
        *self.shared.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
        self.shared.reported.notify_one();
    }

    /// The message that is retained under `topic`; none where there was none within `wait`. It blocks.
    ///
    /// # Errors
    /// A sentence's end: why the broker could not be asked.
    pub fn fetch(&self, topic: &str, wait: Duration) -> Result<Option<Vec<u8>>, String> {
        let (answer, answered) = oneshot::channel();
        let request = Request { topic: topic.into(), wait, answer };
        self.requests.send(request).map_err(|_| "the connection has ended".to_owned())?;
        answered.blocking_recv().unwrap_or_else(|_| Err("the connection to the broker was lost".into()))
    }

    /// Lets [`Follow::run`] end.
    pub fn shut_down(&self) {
        self.shared.stop.notify_one();
    }
}

/// A connection that has not begun.
pub struct Follow {
    options: Options,
    shared: Arc<Shared>,
    requests: mpsc::UnboundedReceiver<Request>,
    heard: Sender<Vec<u8>>,
}

/// What interrupts a wait.
enum Call {
    Stop,
    Report,
    Request(Request),
}

impl Follow {
    /// Connects nowhere yet; `heard` gets what is published under [`Options::listen`].
    pub fn new(options: Options, heard: Sender<Vec<u8>>) -> (Self, Handle) {
        let shared =
            Arc::new(Shared { report: Mutex::default(), reported: Notify::new(), stop: Notify::new() });
        let (ask, requests) = mpsc::unbounded_channel();
        let handle = Handle { shared: shared.clone(), requests: ask };
        (Self { options, shared, requests, heard }, handle)
    }

    /// Follows until [`Handle::shut_down`], over as many connections as it takes.
    pub async fn run(mut self) {
        let patience = self.options.patience;
        let (mut jitter, mut pause) = (Jitter(self.options.seed), patience.pause);
        loop {
            let begun = Instant::now();
            let Err(end) = self.connection().await else { return };
            tracing::warn!(broker = %self.options.endpoint.broker, reason = %end, "no connection to the broker for updates");
            if begun.elapsed() > pause + patience.connect {
                pause = patience.pause;
            }
            // Who waits is told at once, and asks again when it suits.
            let over = Instant::now() + jitter.of(pause);
            loop {
                tokio::select! {
                    () = self.shared.stop.notified() => return,
                    () = tokio::time::sleep_until(over) => break,
                    Some(request) = self.requests.recv() => {
                        let _ = request.answer.send(Err(end.to_string()));
                    }
                }
            }
            pause = (pause * 2).min(patience.longest_pause);
        }
    }

    /// One connection; Ok when it has ended on purpose.
    async fn connection(&mut self) -> Result<(), End> {
        let hello = Hello {
            client_id: self.options.client_id.clone(),
            keep_alive: self.options.keep_alive,
            will: None,
        };
        let opened = tokio::select! {
            () = self.shared.stop.notified() => return Ok(()),
            link = Link::open(&self.options.endpoint, &hello, &self.options.patience) => link,
        };
        let mut link = opened?;
        if let Some(topic) = &self.options.listen {
            link.subscribe(topic).await?;
        }
        let mut asked: BTreeMap<String, Asked> = BTreeMap::new();
        let mut report = true;
        loop {
            if report && link.room() > 0 {
                report = false;
                let payload = self.shared.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(payload) = payload {
                    let topic = self.options.report.clone();
                    link.publish(None, Message { topic, payload }, true).await?;
                }
            }
            // Without a request there is nothing to be late with.
            let idle = Instant::now() + Duration::from_hours(1);
            let until = asked.values().map(|asked| asked.until).fold(idle, Instant::min);
            match link.wait(Self::call(&self.shared, &mut self.requests), until).await? {
                Happened::Settled(settled) => self.settle(settled, &mut asked, &mut link).await?,
                Happened::Other(Call::Stop) => {
                    // What was said last is seen off.
                    let until = Instant::now() + self.options.patience.acknowledge;
                    while !link.is_idle() && Instant::now() < until {
                        if let Happened::Due = link.wait(std::future::pending::<()>(), until).await? {
                            break;
                        }
                    }
                    link.leave().await;
                    return Ok(());
                }
                Happened::Other(Call::Report) => report = true,
                Happened::Other(Call::Request(request)) => {
                    link.subscribe(&request.topic).await?;
                    let until = Instant::now() + request.wait;
                    asked.insert(request.topic, Asked { until, answer: request.answer });
                }
                Happened::Due => {
                    let now = Instant::now();
                    let late: Vec<String> = asked
                        .iter()
                        .filter(|(_, a)| a.until <= now)
                        .map(|(topic, _)| topic.clone())
                        .collect();
                    for topic in late {
                        answer(&mut asked, &topic, Ok(None));
                        link.unsubscribe(&topic).await?;
                    }
                }
            }
        }
    }

    async fn settle(
        &self,
        settled: Settled,
        asked: &mut BTreeMap<String, Asked>,
        link: &mut Link,
    ) -> Result<(), End> {
        for (topic, reason) in settled.barred {
            tracing::warn!(topic, reason, "the broker does not let this device subscribe");
            answer(
                asked,
                &topic,
                Err(format!("the broker does not let this device subscribe to {topic}: {reason}")),
            );
        }
        for Message { topic, payload } in settled.received {
            if self.options.listen.as_ref() == Some(&topic) {
                // The receiver is gone only where the service ends.
                let _ = self.heard.send(payload);
            } else if asked.contains_key(&topic) {
                answer(asked, &topic, Ok(Some(payload)));
                link.unsubscribe(&topic).await?;
            }
        }
        Ok(())
    }

    async fn call(shared: &Shared, requests: &mut mpsc::UnboundedReceiver<Request>) -> Call {
        tokio::select! {
            () = shared.stop.notified() => Call::Stop,
            () = shared.reported.notified() => Call::Report,
            Some(request) = requests.recv() => Call::Request(request),
        }
    }
}

fn answer(asked: &mut BTreeMap<String, Asked>, topic: &str, with: Result<Option<Vec<u8>>, String>) {
    if let Some(asked) = asked.remove(topic) {
        // Who has asked may have gone.
        let _ = asked.answer.send(with);
    }
}
