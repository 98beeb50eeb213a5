//! Many callers, one commit: whoever comes while a commit is under way waits and shares the next one.

use std::sync::{Arc, Condvar, Mutex, OnceLock};

use super::{StoreError, locked};

type Slot = Arc<OnceLock<Result<(), StoreError>>>;

/// Items that wait for a commit. There is no thread of its own: the first that finds nobody committing does it for all.
pub(super) struct Group<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    waiting: Vec<(T, Slot)>,
    leading: bool,
}

impl<T> Group<T> {
    pub fn new() -> Self {
        Self { state: Mutex::new(State { waiting: Vec::new(), leading: false }), changed: Condvar::new() }
    }

    /// Returns when `item` was part of a `commit`, with its outcome.
    pub fn submit(
        &self,
        item: T,
        commit: impl Fn(Vec<T>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let slot = Slot::default();
        let mut state = locked(&self.state);
        state.waiting.push((item, Arc::clone(&slot)));
        loop {
            if let Some(outcome) = slot.get() {
                return outcome.clone();
            }
            if state.leading {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            }
            state.leading = true;
            let (items, slots): (Vec<T>, Vec<Slot>) = std::mem::take(&mut state.waiting).into_iter().unzip();
            drop(state);
            let lead = Lead { group: self, slots };
            let outcome = commit(items);
            for slot in &lead.slots {
                let _ = slot.set(outcome.clone());
            }
            drop(lead);
            state = locked(&self.state);
        }
    }
}

/// Ends a commit in whatever way it ends, so that nobody waits for one that panicked.
struct Lead<'a, T> {
    group: &'a Group<T>,
    slots: Vec<Slot>,
}

impl<T> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        for slot in &self.slots {
            let _ = slot.set(Err(StoreError::BrokenOff));
        }
        locked(&self.group.state).leading = false;
        self.group.changed.notify_all();
    }
}
