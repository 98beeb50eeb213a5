//! What the parts of the service share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use firmware_config::TopicLevel;
use firmware_config::device;

use super::clock::Clock;
use super::early::Early;
use super::http::Inference;
use super::shadow::Shadows;
use super::tasks::Tasks;
use crate::infer::Context;
use crate::publish::Message;
use crate::publish::session::Handle;
use crate::result::{Completion, DeviceKey, Kind, TaskResult, UidForm};
use crate::store::{JobId, Store};

/// What can wait looks so often whether it may go on.
const STAND_BACK: Duration = Duration::from_millis(5);

/// What the parts of the service share.
pub(super) struct Core {
    pub site: TopicLevel,
    pub device: TopicLevel,
    /// With which UIDs are hashed; none where they are published as they are.
    pub key: Option<DeviceKey>,
    pub store: Arc<Store>,
    pub tasks: Tasks,
    pub early: Early,
    pub clock: Clock,
    /// Whether preliminary results are published.
    pub preliminary: AtomicBool,
    pub totals: Mutex<Totals>,
    /// The connection to the broker, once it is made.
    pub session: OnceLock<Handle>,
    /// How many associations run, once the listener does.
    pub associations: OnceLock<Box<dyn Fn() -> usize + Send + Sync>>,
    /// The part that panicked.
    pub fallen: OnceLock<&'static str>,
    pub queue: Queue,
    /// What candidates are to be shown.
    pub shadows: Shadows,
    /// What plugins must do before they go live, and again from time to time.
    pub gate: RwLock<device::Gate>,
    /// The last quarter of which a preliminary result was published, by series and plugin.
    pub quarters: Mutex<BTreeMap<(String, String), u32>>,
}

/// What has happened since the start, in numbers.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// Instances acknowledged.
    pub received: u64,
    /// Instances answered with a failure by the store.
    pub refused: u64,
    /// Results by kind.
    pub results: BTreeMap<String, u64>,
    /// Classifications by task, from the beginning of the job.
    pub inference: BTreeMap<String, Inference>,
    /// When the last final result was made, ms since 1970.
    pub last: Option<i64>,
}

impl Core {
    pub fn totals(&self) -> MutexGuard<'_, Totals> {
        locked(&self.totals)
    }

    /// For results of kind final and not preliminary, unless changed.
    pub fn context(&self, completion: Completion) -> Context {
        let mut context = Context::given(self.device.as_str().to_owned(), SystemTime::now());
        context.completion = completion;
        context
    }

    /// Whether a series is worked on, slices that have just come among it. Nothing else is done meanwhile that can wait.
    pub fn is_working(&self) -> bool {
        locked(&self.queue.in_hand).is_some() || self.early.is_busy()
    }

    /// Whether nothing is worked on and nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        !self.is_working() && self.associations.get().is_none_or(|count| count() == 0)
    }

    /// Whether nothing is worked on, on its way, or waits.
    pub fn is_idle(&self) -> bool {
        let counts = self.store.counts(self.clock.wall());
        self.is_quiet()
            && counts
                .is_ok_and(|counts| counts.open_series == 0 && counts.waiting == 0 && counts.running == 0)
    }

    /// For what can wait, before each slice: returns when no series is worked on; false where the service stops.
    pub fn stand_back(&self) -> bool {
        while self.is_working() && !self.queue.is_stopping() {
            thread::sleep(STAND_BACK);
        }
        !self.queue.is_stopping()
    }

    /// Counts a result that is durable.
    pub fn count(&self, kind: Kind) {
        let mut totals = self.totals();
        *totals.results.entry(kind.as_str().to_owned()).or_default() += 1;
        if kind == Kind::Final {
            totals.last = Some(self.clock.wall());
        }
    }

    /// The result as the broker is to get it.
    pub fn message(&self, result: &TaskResult) -> Message {
        let uids = self.key.as_ref().map_or(UidForm::Plain, UidForm::Hashed);
        Message::result(result, &self.site, &self.device, uids)
    }

    /// The outbox has something new.
    pub fn wake_session(&self) {
        if let Some(session) = self.session.get() {
            session.wake();
        }
    }
}

/// Tells the thread that works on jobs that there is one, or that it is to end.
#[derive(Default)]
pub(super) struct Queue {
    called: Mutex<bool>,
    /// The job that is worked on.
    pub in_hand: Mutex<Option<JobId>>,
    changed: Condvar,
    stopping: AtomicBool,
}

impl Queue {
    pub fn call(&self) {
        *locked(&self.called) = true;
        self.changed.notify_all();
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.call();
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Until it is called, or `most` has passed.
    pub fn wait(&self, most: Duration) {
        let waited = self.changed.wait_timeout_while(locked(&self.called), most, |called| !*called);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }

    /// Until it is to end, or `most` has passed.
    pub fn pause(&self, most: Duration) {
        let waited = self.changed.wait_timeout_while(locked(&self.called), most, |_| !self.is_stopping());
        drop(waited);
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
