//! Messages that wait to be sent, in their order, until they are acknowledged.

use redb::WriteTransaction;

use super::index::{Fault, NUMBER_MESSAGE, OUTBOX, bump};
use super::{OutboxMessage, Store, StoreError};

impl Store {
    /// Messages that belong to the end of no job.
    pub fn enqueue(&self, messages: &[OutboxMessage], now: i64) -> Result<(), StoreError> {
        if messages.is_empty() {
            return Ok(());
        }
        self.index.write(|txn| append(txn, messages, now))
    }

    /// The first messages whose id is greater than `after`, at most `most`, with their ids, which grow and are never given again. Ids
    /// start at 1.
    pub fn outbox(&self, after: u64, most: usize) -> Result<Vec<(u64, OutboxMessage)>, StoreError> {
        self.index.read(|txn| {
            let table = txn.open_table(OUTBOX)?;
            let mut found = Vec::new();
            for entry in table.range(after.saturating_add(1)..)?.take(most) {
                let (id, value) = entry?;
                let (topic, payload, _) = value.value();
                found.push((
                    id.value(),
                    OutboxMessage { topic: topic.to_owned(), payload: payload.to_owned() },
                ));
            }
            Ok(found)
        })
    }

    /// Removes messages that were acknowledged; ids that are not there are passed over.
    pub fn delivered(&self, ids: &[u64]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        self.index.write(|txn| {
            let mut table = txn.open_table(OUTBOX)?;
            for id in ids {
                table.remove(id)?;
            }
            Ok(())
        })
    }
}

pub(super) fn append(txn: &WriteTransaction, messages: &[OutboxMessage], now: i64) -> Result<(), Fault> {
    for OutboxMessage { topic, payload } in messages {
        let id = bump(txn, NUMBER_MESSAGE)? + 1;
        txn.open_table(OUTBOX)?.insert(id, (topic.as_str(), payload.as_slice(), now))?;
    }
    Ok(())
}
