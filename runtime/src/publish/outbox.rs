//! Where messages wait until the broker has taken them, and how they get from there onto a connection.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::End;
use super::link::{Link, Settled};
use super::{MAX_PAYLOAD, Message};
use crate::store::Store;

/// What went wrong with an outbox; it is logged and tried again.
pub type OutboxError = Box<dyn std::error::Error + Send + Sync>;

/// A durable queue of messages. A row stays until it is delivered; what is asked of it may take the time of a disk.
pub trait Outbox: Send + Sync + 'static {
    /// Up to `most` rows with identities greater than `after`, in the order of their identities, which are greater than 0.
    fn next(&self, after: u64, most: usize) -> Result<Vec<(u64, Message)>, OutboxError>;

    /// Forgets rows, because the broker has acknowledged each of them.
    fn delivered(&self, rows: &[u64]) -> Result<(), OutboxError>;
}

impl Outbox for Store {
    fn next(&self, after: u64, most: usize) -> Result<Vec<(u64, Message)>, OutboxError> {
        Ok(self.outbox(after, most)?)
    }

    fn delivered(&self, rows: &[u64]) -> Result<(), OutboxError> {
        Ok(Self::delivered(self, rows)?)
    }
}

/// An outbox's way over one connection.
pub(super) struct Drain<O: Outbox> {
    outbox: Arc<O>,
    /// The last row that was handed over.
    after: u64,
    /// Rows that the broker does not want, and the last reason.
    refused: u64,
    refusal: Option<String>,
}

impl<O: Outbox> Drain<O> {
    pub fn new(outbox: Arc<O>) -> Self {
        Self { outbox, after: 0, refused: 0, refusal: None }
    }

    /// Hands over as many rows as there is room for.
    pub async fn fill(&mut self, link: &mut Link) -> Result<(), End> {
        while link.room() > 0 {
            let (after, most) = (self.after, link.room());
            let rows = self.ask(move |outbox| outbox.next(after, most)).await?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            self.after = *last;
            for (row, message) in rows {
                if link.carries(row) {
                    continue;
                }
                if message.payload.len() > MAX_PAYLOAD || !link.fits(&message) {
                    self.refuse(row, format!("{} bytes are too many", message.payload.len()));
                    continue;
                }
                link.publish(Some(row), message, false).await?;
            }
        }
        Ok(())
    }

    /// Takes note of acknowledgements; returns how many rows were delivered.
    pub async fn settle(&mut self, settled: Settled) -> Result<u64, End> {
        for (row, reason) in settled.refused {
            self.refuse(row, reason);
        }
        let rows = settled.delivered;
        let count = rows.len() as u64;
        if count > 0 {
            self.ask(move |outbox| outbox.delivered(&rows)).await?;
        }
        Ok(count)
    }

    /// Why the broker does not want some rows, if there are such. They stay, and do not hold up the others.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// How many rows the broker did not want since the last [`Self::rewind`].
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Offers all rows again that are not on their way.
    pub fn rewind(&mut self) {
        (self.after, self.refused, self.refusal) = (0, 0, None);
    }

    fn refuse(&mut self, row: u64, reason: String) {
        tracing::warn!(row, %reason, "the broker does not take a message; it is kept and offered again later");
        self.refused += 1;
        self.refusal = Some(reason);
    }

    /// Disks may be slow: not on the thread that keeps the connection alive.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&O) -> Result<T, OutboxError> + Send + 'static,
    ) -> Result<T, End> {
        let outbox = self.outbox.clone();
        match tokio::task::spawn_blocking(move || question(&outbox)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(End::Lost(format!("the outbox cannot be used: {error}"))),
            Err(error) => Err(End::Lost(format!("the outbox cannot be used: {error}"))),
        }
    }
}

/// A few messages in memory.
pub(super) struct Few(Mutex<BTreeMap<u64, Message>>);

impl Few {
    pub fn new(messages: &[Message]) -> Self {
        Self(Mutex::new((1..).zip(messages.iter().cloned()).collect()))
    }

    pub fn len(&self) -> usize {
        self.rows().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<u64, Message>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Outbox for Few {
    fn next(&self, after: u64, most: usize) -> Result<Vec<(u64, Message)>, OutboxError> {
        let rows = self.rows();
        Ok(rows.range((Excluded(after), Unbounded)).take(most).map(|(id, m)| (*id, m.clone())).collect())
    }

    fn delivered(&self, rows: &[u64]) -> Result<(), OutboxError> {
        let mut all = self.rows();
        for row in rows {
            all.remove(row);
        }
        Ok(())
    }
}
