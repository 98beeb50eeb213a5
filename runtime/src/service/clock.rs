//! The clocks, read in one place.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Both clocks of the machine: the one that tells the time and may be set, and the one that only runs.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// The monotonic one begins at 0.
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    /// Milliseconds since the start.
    pub fn monotonic(&self) -> i64 {
        i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Milliseconds since 1970, by the clock that may be set.
    pub fn wall(&self) -> i64 {
        let now = SystemTime::now();
        match now.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        }
    }
}

/// Whether what is old may be deleted: not while the clock has just been set, or everything would seem old at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steadiness {
    /// Wall less monotonic time when it was last looked at, in ms.
    offset: Option<i64>,
    /// Monotonic time until which nothing may be deleted.
    until: i64,
}

/// The clock may run by so much ahead of the monotonic one between two looks before it counts as set, in ms.
const SLACK: i64 = 60_000;

impl Steadiness {
    /// Looks at both clocks, in ms. After the clock was set forward nothing may be deleted for `keep_ms`, within which what
    /// came before would have been kept.
    pub fn allows(&mut self, wall: i64, monotonic: i64, keep_ms: i64) -> bool {
        let offset = wall.saturating_sub(monotonic);
        let before = self.offset.replace(offset).unwrap_or(offset);
        if offset.saturating_sub(before) > SLACK {
            self.until = monotonic.saturating_add(keep_ms);
        }
        monotonic >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_deleted_because_the_clock_was_set() {
        let mut steady = Steadiness::default();
        assert!(steady.allows(1_000_000, 0, 5_000));
        assert!(steady.allows(1_060_000, 60_000, 5_000), "it only ran");
        assert!(!steady.allows(2_000_000_000, 61_000, 5_000), "set forward");
        assert!(!steady.allows(2_000_004_000, 65_000, 5_000));
        assert!(steady.allows(2_000_005_000, 66_000, 5_000), "as long as things are kept has passed");
        assert!(steady.allows(1_000, 67_000, 5_000), "set back: things only seem younger");
        assert!(steady.allows(2_000, 68_000, 5_000));
    }
}
