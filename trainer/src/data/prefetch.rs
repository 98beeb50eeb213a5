use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How far preparation runs ahead of what the network works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Threads that prepare.
    pub threads: usize,
    /// Most memory for what is prepared and waits, in bytes. One volume is always prepared ahead, however large; volumes under
    /// way count as the largest one yet.
    pub bytes: usize,
}

/// What waits and what is under way.
struct Queue<R> {
    /// Place of the next item to start with.
    next: usize,
    /// Place of the next item to hand over.
    wanted: usize,
    /// Done, by place, with their bytes.
    ready: BTreeMap<usize, (R, usize)>,
    /// Bytes of `ready`.
    held: usize,
    /// Bytes of the largest item yet.
    largest: usize,
    under_way: usize,
    /// Nobody waits for more.
    stopped: bool,
}

struct Shared<R> {
    queue: Mutex<Queue<R>>,
    changed: Condvar,
}

impl<R> Shared<R> {
    fn lock(&self) -> MutexGuard<'_, Queue<R>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue<R>>) -> MutexGuard<'a, Queue<R>> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends everyone's waiting when it is dropped, also by a panic.
struct Stop<'a, R>(&'a Shared<R>);

impl<R> Drop for Stop<'_, R> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

impl<R> Queue<R> {
    /// Whether the next item may be started with.
    fn has_room(&self, limit: usize) -> bool {
        if self.next == self.wanted {
            return true;
        }
        // Until one is done it is not known how large they are.
        self.largest > 0 && self.held + (self.under_way + 1) * self.largest <= limit
    }
}

/// Calls `make` for each of `items` on other threads, as far ahead as there is room, and `take` with the results in order on
/// this one; `bytes` says how much memory a result holds. Stops at the first error of either.
pub fn in_order<T: Send, E: Send>(
    items: &[usize],
    ahead: Ahead,
    bytes: impl Fn(&T) -> usize + Sync,
    make: impl Fn(usize) -> Result<T, E> + Sync,
    mut take: impl FnMut(usize, T) -> Result<(), E>,
) -> Result<(), E> {
    let queue = Queue {
        next: 0,
        wanted: 0,
        ready: BTreeMap::new(),
        held: 0,
        largest: 0,
        under_way: 0,
        stopped: false,
    };
    let shared = Shared { queue: Mutex::new(queue), changed: Condvar::new() };
    let prepare = || {
        loop {
            let mut queue = shared.lock();
            while !queue.stopped && queue.next < items.len() && !queue.has_room(ahead.bytes) {
                queue = shared.wait(queue);
            }
            if queue.stopped || queue.next == items.len() {
                return;
            }
            let place = queue.next;
            queue.next += 1;
            queue.under_way += 1;
            drop(queue);
            let stop = Stop(&shared);
            let made = make(items[place]);
            std::mem::forget(stop);
            let size = made.as_ref().map_or(0, &bytes);
            let mut queue = shared.lock();
            queue.under_way -= 1;
            queue.held += size;
            queue.largest = queue.largest.max(size);
            queue.ready.insert(place, (made, size));
            drop(queue);
            shared.changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        let _stop = Stop(&shared);
        for _ in 0..ahead.threads.clamp(1, items.len().max(1)) {
            scope.spawn(prepare);
        }
        for (place, &item) in items.iter().enumerate() {
            let mut queue = shared.lock();
            let (made, size) = loop {
                if let Some(found) = queue.ready.remove(&place) {
                    break found;
                }
                // A thread panicked; the scope hands its panic on.
                if queue.stopped {
                    return Ok(());
                }
                queue = shared.wait(queue);
            };
            queue.held -= size;
            queue.wanted = place + 1;
            drop(queue);
            shared.changed.notify_all();
            take(item, made?)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn ahead(threads: usize, bytes: usize) -> Ahead {
        Ahead { threads, bytes }
    }

    #[test]
    fn results_come_in_order_and_errors_stop_both_sides() {
        let items: Vec<usize> = (0..40).rev().collect();
        for threads in [1, 4] {
            let mut seen = Vec::new();
            let slow_to_fast = |i: usize| {
                std::thread::sleep(Duration::from_micros(i as u64 % 7 * 100));
                Ok::<_, String>(i * i)
            };
            let all = in_order(
                &items,
                ahead(threads, 1000),
                |_| 1,
                slow_to_fast,
                |i, square| {
                    assert_eq!(square, i * i);
                    seen.push(i);
                    Ok(())
                },
            );
            assert_eq!((all, &seen), (Ok(()), &items));
            let fails = |i| if i == 7 { Err("made") } else { Ok(()) };
            let mut last = 40;
            let made = in_order(
                &items,
                ahead(threads, 1000),
                |()| 1,
                fails,
                |i, ()| {
                    last = i;
                    Ok(())
                },
            );
            assert_eq!((made, last), (Err("made"), 8), "everything before it was handed over");
            let fails = |i, ()| if i == 7 { Err("taken") } else { Ok(()) };
            assert_eq!(in_order(&items, ahead(threads, 1000), |()| 1, |_| Ok(()), fails), Err("taken"));
        }
        assert_eq!(in_order(&[], ahead(4, 0), |()| 0, |_| Err("made"), |_, ()| Ok(())), Ok(()));
    }

    #[test]
    fn items_are_prepared_side_by_side() {
        let (send, receive) = std::sync::mpsc::channel();
        let receive = Mutex::new(receive);
        // The second waits for the third, which only another thread can be at.
        let make = |i: usize| match i {
            1 => receive.lock().unwrap().recv_timeout(Duration::from_mins(1)).map_err(|_| "alone"),
            2 => send.send(()).map_err(|_| "gone"),
            _ => Ok(()),
        };
        let items: Vec<usize> = (0..5).collect();
        assert_eq!(in_order(&items, ahead(2, 9), |()| 1, make, |_, ()| Ok(())), Ok(()));
    }

    #[test]
    fn another_is_started_where_it_fits_beside_what_waits_and_is_under_way() {
        let queue = |next, held, largest, under_way| Queue::<()> {
            next,
            wanted: 1,
            ready: BTreeMap::new(),
            held,
            largest,
            under_way,
            stopped: false,
        };
        assert!(queue(4, 20, 10, 1).has_room(40) && !queue(4, 20, 10, 1).has_room(39));
        assert!(!queue(2, 0, 0, 1).has_room(1000), "how large they are is not known yet");
        assert!(queue(1, 0, 1000, 0).has_room(10), "the one that is waited for");
    }

    /// The most bytes that were under way or done and not yet taken.
    fn most(threads: usize, limit: usize, sizes: &[usize]) -> usize {
        let (held, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let items: Vec<usize> = (0..sizes.len()).collect();
        let make = |i: usize| {
            most.fetch_max(held.fetch_add(sizes[i], Ordering::SeqCst) + sizes[i], Ordering::SeqCst);
            Ok::<_, ()>(sizes[i])
        };
        // Taking is slower than making, so that preparation runs into its limit.
        let take = |_, size: usize| {
            std::thread::sleep(Duration::from_millis(1));
            held.fetch_sub(size, Ordering::SeqCst);
            Ok(())
        };
        in_order(&items, ahead(threads, limit), |size| *size, make, take).unwrap();
        most.into_inner()
    }

    #[test]
    fn memory_is_bounded_and_a_volume_that_is_too_large_goes_through() {
        // One more than the limit holds: the one that is being taken.
        assert!(most(4, 50, &[10; 40]) <= 60);
        assert!(most(4, 5, &[10; 20]) <= 20);
        // The large one was not known to be so.
        assert!(most(2, 50, &[10, 10, 200, 10, 10, 10, 10]) <= 250);
    }

    #[test]
    fn a_panic_on_either_side_reaches_the_caller() {
        let items: Vec<usize> = (0..20).collect();
        let panics = |run: &(dyn Fn() -> Result<(), ()> + std::panic::RefUnwindSafe)| {
            std::panic::catch_unwind(run).is_err()
        };
        let at = |i: usize| {
            assert!(i != 5, "five");
            Ok(())
        };
        assert!(panics(&|| in_order(&items, ahead(3, 9), |()| 1, at, |_, ()| Ok(()))));
        assert!(panics(&|| in_order(&items, ahead(3, 9), |()| 1, |_| Ok(()), |i, ()| at(i))));
    }
}
