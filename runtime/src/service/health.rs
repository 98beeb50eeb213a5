//! What the service says of itself: as numbers for whoever watches the box, and as the message `health`.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::http::Snapshot;
use super::machine::{self, resident_memory, temperatures};
use crate::result::rfc3339;
use crate::store::Counts;

/// The payload of `health`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// `scanside.health/1`.
    pub schema: String,
    /// Why the service does not do its work, in a sentence; null while it does.
    pub trouble: Option<String>,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Series with instances that are part of no job yet.
    pub open_series: u64,
    /// Series that wait to be classified.
    pub waiting: u64,
    /// Series of which a task waits for others of their study.
    #[serde(default)]
    pub awaiting_views: u64,
    /// Series that are being classified.
    pub running: u64,
    /// Series that were given up, until retention.
    pub quarantined: u64,
    /// Messages that wait for the broker.
    pub outbox: u64,
    /// Bytes of stored instances.
    pub store_bytes: u64,
    /// Bytes that are free on the disk.
    pub free_bytes: u64,
    /// Bytes of memory in use.
    pub memory_bytes: Option<u64>,
    /// Degrees Celsius by thermometer, where the machine has some.
    pub temperatures: Vec<(String, f64)>,
    /// When the last result was made since the start, UTC, RFC 3339.
    pub last_result: Option<String>,
}

impl Health {
    /// The value of [`Health::schema`].
    pub const SCHEMA: &'static str = "scanside.health/1";

    fn of(snapshot: &Snapshot) -> Self {
        let Counts {
            open_series,
            waiting,
            awaiting_views,
            running,
            quarantined,
            outbox,
            bytes,
            free_bytes,
            ..
        } = snapshot.store.unwrap_or_default();
        let time = |ms: i64| rfc3339(UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0)));
        Self {
            schema: Self::SCHEMA.into(),
            trouble: snapshot.trouble.clone(),
            uptime_s: snapshot.uptime.as_secs(),
            open_series,
            waiting,
            awaiting_views,
            running,
            quarantined,
            outbox,
            store_bytes: bytes,
            free_bytes,
            memory_bytes: snapshot.resident_memory,
            temperatures: snapshot.temperatures.iter().map(|t| (t.zone.clone(), t.celsius)).collect(),
            last_result: snapshot.last_result.map(time),
        }
    }
}

impl Core {
    /// How the service is doing.
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.store.counts(self.clock.wall());
        let trouble = match &counts {
            Err(error) => Some(error.to_string()),
            Ok(counts) => self.trouble(counts),
        };
        let totals = self.totals();
        Snapshot {
            trouble,
            version: env!("CARGO_PKG_VERSION").into(),
            uptime: Duration::from_millis(u64::try_from(self.clock.monotonic()).unwrap_or(0)),
            store: counts.ok(),
            session: self.session.get().map(crate::publish::session::Handle::status).unwrap_or_default(),
            associations: self.associations.get().map_or(0, |count| count() as u64),
            instances_received: totals.received,
            instances_refused: totals.refused,
            jobs_finished: totals.results.clone(),
            inference: totals.inference.clone(),
            slices_encoded: self.early.encoded(),
            last_result: totals.last,
            resident_memory: resident_memory(Path::new(machine::STATUS)),
            temperatures: temperatures(Path::new(machine::THERMAL)),
        }
    }

    /// Why the service does not do its work. A broker that is away is no reason: results wait for it.
    fn trouble(&self, counts: &Counts) -> Option<String> {
        if let Some(part) = self.fallen.get() {
            return Some(format!(
                "its part `{part}` has failed; its log says where, and a restart brings it back"
            ));
        }
        if let Some((task, reason)) = self.tasks.failed().into_iter().next() {
            return Some(format!("task {task} cannot be run: {reason}"));
        }
        let limits = self.store.limits();
        let full = counts.bytes >= limits.max_bytes || counts.free_bytes < limits.min_free_bytes;
        full.then(|| {
            "the store is full, so that scanners are refused; wait for the retention time, or raise `store.max_size`"
                .to_owned()
        })
    }

    /// The payload of `health` at present.
    pub fn health(&self) -> Vec<u8> {
        serde_json::to_vec(&Health::of(&self.snapshot())).unwrap_or_default()
    }
}
