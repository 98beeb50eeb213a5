//! What the service says of itself.

use serde::{Deserialize, Serialize};

use super::core::Core;

/// The payload of `health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `scanside.health/1`.
    pub schema: String,
    /// Series with instances that are part of no job yet.
    pub open_series: u64,
    /// Series that wait to be classified.
    pub waiting: u64,
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
    /// Active plugins that cannot be run, by task, and why not.
    pub failed: Vec<(String, String)>,
    /// Task and time of the last final result since the start.
    pub last_result: Option<(String, String)>,
    /// What else is wrong, a sentence each.
    pub trouble: Vec<String>,
}

impl Health {
    /// The value of [`Health::schema`].
    pub const SCHEMA: &'static str = "scanside.health/1";
}

impl Core {
    /// The payload of `health` at present.
    pub fn health(&self) -> Vec<u8> {
        let mut trouble = Vec::new();
        let counts = self.store.counts().unwrap_or_else(|error| {
            trouble.push(error.to_string());
            Default::default()
        });
        let health = Health {
            schema: Health::SCHEMA.into(),
            open_series: counts.open_series,
            waiting: counts.waiting,
            running: counts.running,
            quarantined: counts.quarantined,
            outbox: counts.outbox,
            store_bytes: counts.bytes,
            free_bytes: counts.free_bytes,
            failed: self.tasks.failed(),
            last_result: self.totals().last.clone(),
            trouble,
        };
        serde_json::to_vec(&health).unwrap_or_default()
    }
}
