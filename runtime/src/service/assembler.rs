//! The thread that knows which series are open and ends those that are complete.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::core::Core;
use crate::ingest::assembly::{Assembly, Complete, Event, Policy};

/// What the thread is told.
pub(super) enum Call {
    Event(Event),
    Policy(Policy),
    Stop,
}

/// A series that could not be ended, because the disk failed, is tried again after so long.
const AGAIN: Duration = Duration::from_secs(5);
/// Without an open series there is nothing to look at; this is only so that no wait is for ever.
const IDLE: Duration = Duration::from_hours(1);

/// Until it is told to stop.
pub(super) fn run(core: &Arc<Core>, mut assembly: Assembly, calls: &Receiver<Call>) {
    let mut unended: Vec<Complete> = Vec::new();
    loop {
        let due = assembly
            .next_deadline()
            .map(|at| Duration::from_millis(u64::try_from(at - core.clock.monotonic()).unwrap_or(0)));
        let wait = due.unwrap_or(IDLE).min(if unended.is_empty() { IDLE } else { AGAIN });
        let complete = match calls.recv_timeout(wait) {
            Ok(Call::Event(event)) => assembly.on(event),
            Ok(Call::Policy(policy)) => {
                assembly.set_policy(policy);
                assembly.tick(core.clock.monotonic())
            }
            Err(RecvTimeoutError::Timeout) => assembly.tick(core.clock.monotonic()),
            Ok(Call::Stop) | Err(RecvTimeoutError::Disconnected) => return,
        };
        unended.extend(complete);
        unended.retain(|complete| !end(core, complete));
    }
}

/// Queues the job of a series; false if the disk failed.
fn end(core: &Core, Complete { series_uid, completion }: &Complete) -> bool {
    match core.store.close(series_uid, *completion, core.clock.wall()) {
        Ok(Some(job)) => {
            tracing::info!(%job, completion = completion.as_str(), "a series is complete");
            core.queue.call();
            true
        }
        Ok(None) => true,
        Err(error) => {
            tracing::error!(%error, "a complete series cannot be queued; it is tried again");
            false
        }
    }
}
