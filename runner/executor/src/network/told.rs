//! What is told of refusals in a guest's log: the first ones, and then one now and then.

use std::time::{Duration, Instant};

/// Told at once.
const BURST: u32 = 10;

/// Then one line in this time.
const INTERVAL: Duration = Duration::from_secs(10);

pub struct Told {
    left: u32,
    since: Instant,
    /// Since the last line.
    untold: u64,
}

impl Told {
    pub fn new() -> Told {
        Told {
            left: BURST,
            since: Instant::now(),
            untold: 0,
        }
    }

    /// Whether a refusal is to be told now; how many were not told since the last one that was.
    pub fn next(&mut self, now: Instant) -> Option<u64> {
        let earned = now.saturating_duration_since(self.since).as_secs() / INTERVAL.as_secs();
        if earned > 0 {
            self.left = self.left.saturating_add(earned.min(BURST.into()) as u32).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.untold += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_by_a_few_lines_that_count_it() {
        let mut told = Told::new();
        let start = told.since;
        for _ in 0..BURST {
            assert_eq!(told.next(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(told.next(start), None);
        }
        let later = start + INTERVAL;
        assert_eq!(told.next(later), Some(1000));
        assert_eq!(told.next(later), None);
    }
}
