//! Threads that share one slice's work.
//!
//! A slice is some hundred steps of a fraction of a millisecond each, and all threads must have ended one before the next begins. So those
//! that wait do it awake, for a while: being woken takes longer than a step leaves to wait.

#![allow(
    unsafe_code,
    reason = "threads that live longer are lent what a step borrows; it ends before the loan does"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// What all threads are to do at once, each until nothing is left of it.
type Step<'a> = &'a (dyn Fn(usize) + Sync);

/// The calling thread and its helpers.
pub struct Crew {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// The step under way; a pointer to a [`Step`] on the stack of whoever waits for its end.
    step: AtomicPtr<()>,
    /// How many steps have begun.
    begun: AtomicUsize,
    /// Helpers that have not ended the step.
    busy: AtomicUsize,
    panicked: AtomicBool,
    over: AtomicBool,
}

impl Crew {
    /// So many threads, the caller's among them.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let mut crew = Self { shared: Arc::default(), helpers: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&crew.shared);
            let helper = thread::Builder::new().name(format!("encoder-{number}"));
            crew.helpers.push(helper.spawn(move || shared.help(number))?);
        }
        Ok(crew)
    }

    pub(super) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Does `work` to each part, on any of the threads; `work` is told which.
    pub(super) fn each<T: Send>(&self, parts: Vec<T>, work: impl Fn(usize, T) + Sync) {
        if self.helpers.is_empty() || parts.len() < 2 {
            return parts.into_iter().for_each(|part| work(0, part));
        }
        let parts = Mutex::new(parts.into_iter());
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.all(&|thread| {
            while let Some(part) = next() {
                work(thread, part);
            }
        });
    }

    /// Has every thread do `step`, and returns when all of them have.
    fn all(&self, step: Step<'_>) {
        /// Waits for the helpers even where this thread's own part panics: what they were lent must outlive them.
        struct End<'a>(&'a Shared);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                wait_until(|| self.0.busy.load(Ordering::Acquire) == 0, thread::yield_now);
            }
        }
        let shared = &*self.shared;
        shared.busy.store(self.helpers.len(), Ordering::Relaxed);
        shared.step.store((&raw const step).cast_mut().cast(), Ordering::Relaxed);
        shared.begun.fetch_add(1, Ordering::Release);
        for helper in &self.helpers {
            helper.thread().unpark();
        }
        {
            let _end = End(shared);
            step(0);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a helping thread panicked");
    }
}

impl Shared {
    fn help(&self, number: usize) {
        let mut seen = 0;
        loop {
            wait_until(|| self.begun.load(Ordering::Acquire) != seen, thread::park);
            seen += 1;
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `Crew::all` stored it before it counted the step that was seen here, and keeps what it points to until this helper is
            // no longer busy.
            let step = unsafe { *self.step.load(Ordering::Relaxed).cast::<Step<'_>>() };
            if catch_unwind(AssertUnwindSafe(|| step(number))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        self.shared.begun.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // It catches its panics.
            let _ = helper.join();
        }
    }
}

/// Looks again and again, and after some tens of microseconds has `pause` between the looks.
fn wait_until(done: impl Fn() -> bool, pause: impl Fn()) {
    const LOOKS: usize = 2000;
    let mut looks = 0;
    while !done() {
        if looks < LOOKS {
            looks += 1;
            std::hint::spin_loop();
        } else {
            pause();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_step_after_step() {
        for threads in [1, 2, 5] {
            let crew = Crew::new(threads).unwrap();
            let mut values = vec![0usize; 37];
            for step in 1..=200 {
                let parts: Vec<_> = values.iter_mut().enumerate().collect();
                crew.each(parts, |thread, (n, value)| {
                    assert!(thread < threads);
                    *value += n * step;
                });
            }
            assert!(values.iter().enumerate().all(|(n, value)| *value == n * 200 * 201 / 2));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let crew = Crew::new(3).unwrap();
        let failed = catch_unwind(AssertUnwindSafe(|| {
            crew.each((0..64).collect(), |_, n: usize| assert!(n != 40, "one of them"));
        }));
        assert!(failed.is_err());
    }
}
