//! When a series is complete: DICOM never says, so the device's policy does.
//!
//! A pure state machine. It is told of instances that are stored and of associations that ended, each with a time, and
//! answers which series are complete now and why. A slice that comes after that opens a revision of its series, which
//! completes by the same rules. Instances are counted per series, so two series on one association are two.
//!
//! **Time** is milliseconds of a monotonic clock; where it starts does not matter. Should it jump nevertheless, a step
//! back counts as no time, and a step forward (a machine that slept, a clock that was set) as [`MAX_STEP_MS`] at most,
//! since nothing could have arrived meanwhile: neither completes every open series at once, nor keeps one open for
//! ever. [`Assembly::next_deadline`] is never farther away than such a step.
//!
//! An association that broke off is no sign that a series is whole: only a release is. What it had sent waits for the
//! sender's next try, or for idle time or age.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::result::Completion;

/// No step of the clock counts for more, in ms.
pub const MAX_STEP_MS: i64 = 10_000;

/// Of so many completed series it is remembered how many instances they have, so that the expected count is right for
/// a revision, too. Of older ones, a revision completes by the other rules.
const REMEMBERED: usize = 1000;

/// Which signs of completeness count. The first that is there completes a series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// All associations that sent instances of the series since it was opened are over, and the last of them was
    /// released. With [`Self::expected_count`], only if not fewer instances are there than expected.
    pub association_end: bool,
    /// As many instances are there as the images say; where they disagree, the greatest of their numbers.
    pub expected_count: bool,
    /// No instance for so long, in ms.
    pub idle_ms: Option<i64>,
    /// The series was opened so long ago, in ms. The last resort, hence no option.
    pub max_age_ms: i64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An instance is stored.
    Instance {
        /// Series Instance UID (0020,000E).
        series_uid: String,
        /// The association it came by.
        association: u64,
        /// How many instances the series will have, if this one says.
        expected: Option<u32>,
        /// False where the store already had it. It then shows that the sender is still at it, but counts for nothing.
        new: bool,
        /// When, in ms.
        at: i64,
    },
    /// An association is over.
    AssociationEnded {
        /// Which one.
        association: u64,
        /// Whether its sender released it, as one that has sent all does.
        released: bool,
        /// When, in ms.
        at: i64,
    },
}

/// A series that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complete {
    /// Series Instance UID (0020,000E).
    pub series_uid: String,
    /// Why.
    pub completion: Completion,
}

/// A series with stored instances that are part of no completion yet, as it is known after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Series Instance UID (0020,000E).
    pub series_uid: String,
    /// How many instances are stored, those of completed revisions included.
    pub instances: u32,
    /// How many instances it will have, if they say.
    pub expected: Option<u32>,
}

/// See the module's description.
#[derive(Debug)]
pub struct Assembly {
    policy: Policy,
    /// The caller's clock, when it was last heard.
    heard: Option<i64>,
    /// Time that counted, in ms since the start.
    now: i64,
    open: BTreeMap<String, Open>,
    closed: VecDeque<(String, Known)>,
}

/// What is known of a series over all its revisions.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    instances: u32,
    expected: Option<u32>,
}

#[derive(Debug)]
struct Open {
    known: Known,
    /// When this revision was opened.
    since: i64,
    /// When its last instance came.
    last: i64,
    /// The associations that sent it and are not over.
    senders: BTreeSet<u64>,
    /// Set once it is complete for a reason other than time.
    complete: Option<Completion>,
}

impl Assembly {
    /// One that knows of no series.
    pub fn new(policy: Policy) -> Self {
        Self { policy, heard: None, now: 0, open: BTreeMap::new(), closed: VecDeque::new() }
    }

    /// After a restart: `pending` are open from `at`, their associations lost.
    pub fn restore(policy: Policy, pending: impl IntoIterator<Item = Pending>, at: i64) -> Self {
        let mut this = Self::new(policy);
        this.heard = Some(at);
        for Pending { series_uid, instances, expected } in pending {
            let known = Known { instances, expected };
            let complete = this.counted(known).then_some(Completion::ExpectedCount);
            let open = Open { known, since: 0, last: 0, senders: BTreeSet::new(), complete };
            this.open.insert(series_uid, open);
        }
        this
    }

    /// Changes what counts from now on, for open series too.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes note of an event; the series that are complete now, in the order in which they became so.
    #[must_use]
    pub fn on(&mut self, event: Event) -> Vec<Complete> {
        match event {
            Event::Instance { series_uid, association, expected, new, at } => {
                self.advance(at);
                self.instance(series_uid, association, expected, new);
            }
            Event::AssociationEnded { association, released, at } => {
                self.advance(at);
                self.ended(association, released);
            }
        }
        self.take_complete()
    }

    /// The series that are complete now, in the order in which they became so.
    #[must_use]
    pub fn tick(&mut self, now: i64) -> Vec<Complete> {
        self.advance(now);
        self.take_complete()
    }

    /// When to call [`Self::tick`] at the latest, on the caller's clock; `None` while no series is open.
    pub fn next_deadline(&self) -> Option<i64> {
        let wait = self.open.values().map(|open| self.deadline(open).0 - self.now).min()?;
        self.heard.map(|heard| heard.saturating_add(wait.clamp(0, MAX_STEP_MS)))
    }

    /// How many series are open.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    fn advance(&mut self, at: i64) {
        let heard = *self.heard.get_or_insert(at);
        let step = at.saturating_sub(heard);
        // Events of several threads may come a little out of order; only a greater step back is a clock that was set.
        if !(-MAX_STEP_MS..=0).contains(&step) {
            self.heard = Some(at);
        }
        self.now += step.clamp(0, MAX_STEP_MS);
    }

    fn instance(&mut self, series_uid: String, association: u64, expected: Option<u32>, new: bool) {
        if !new && !self.open.contains_key(&series_uid) {
            return;
        }
        let (now, closed) = (self.now, &mut self.closed);
        let open = self.open.entry(series_uid).or_insert_with_key(|uid| {
            let place = closed.iter().position(|(closed, _)| closed == uid);
            let known = place.and_then(|n| closed.remove(n)).map(|(_, known)| known).unwrap_or_default();
            Open { known, since: now, last: now, senders: BTreeSet::new(), complete: None }
        });
        open.last = now;
        open.senders.insert(association);
        open.known.expected = open.known.expected.max(expected);
        if new {
            open.known.instances = open.known.instances.saturating_add(1);
            let known = open.known;
            if self.policy.expected_count && known.expected == Some(known.instances) {
                open.complete = Some(Completion::ExpectedCount);
            }
        }
    }

    fn ended(&mut self, association: u64, released: bool) {
        let Policy { association_end, expected_count, .. } = self.policy;
        for open in self.open.values_mut() {
            let sent = open.senders.remove(&association);
            let lacking = expected_count && open.known.expected.is_some_and(|n| open.known.instances < n);
            if sent && released && association_end && open.senders.is_empty() && !lacking {
                open.complete.get_or_insert(Completion::AssociationEnd);
            }
        }
    }

    /// Whether the series has exactly what it should. With more, its number is not to be trusted, and each further
    /// slice would be a revision of its own.
    fn counted(&self, known: Known) -> bool {
        self.policy.expected_count && known.expected == Some(known.instances)
    }

    /// When a series is complete, on this module's clock, and why.
    fn deadline(&self, open: &Open) -> (i64, Completion) {
        if let Some(completion) = open.complete {
            return (self.now, completion);
        }
        let age = (open.since.saturating_add(self.policy.max_age_ms), Completion::MaxAge);
        match self.policy.idle_ms.map(|idle| open.last.saturating_add(idle)) {
            Some(idle) if idle <= age.0 => (idle, Completion::Idle),
            _ => age,
        }
    }

    fn take_complete(&mut self) -> Vec<Complete> {
        let due = self.open.iter().map(|(uid, open)| (self.deadline(open), uid));
        let mut due: Vec<_> = due.filter(|((at, _), _)| *at <= self.now).collect();
        due.sort_by_key(|&((at, _), uid)| (at, uid));
        let due =
            due.into_iter().map(|((_, completion), uid)| Complete { series_uid: uid.clone(), completion });
        let due: Vec<Complete> = due.collect();
        for Complete { series_uid, .. } in &due {
            if let Some(open) = self.open.remove(series_uid) {
                self.closed.push_back((series_uid.clone(), open.known));
            }
        }
        let forgotten = self.closed.len().saturating_sub(REMEMBERED);
        self.closed.drain(..forgotten);
        due
    }
}

#[cfg(test)]
mod tests;
