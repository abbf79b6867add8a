//! How fast a guest may write: kept by letting it wait, so that a flood slows only the one that makes it.

use std::thread;
use std::time::{Duration, Instant};

/// What may be written at once after a silence.
const BURST: Duration = Duration::from_secs(1);

pub struct Rate {
    bytes_per_second: u64,
    /// When all that was written would have been written at the allowed rate.
    due: Instant,
}

impl Rate {
    pub fn new(bytes_per_second: u64) -> Rate {
        Rate {
            bytes_per_second: bytes_per_second.max(1),
            due: Instant::now(),
        }
    }

    /// Wait until so many bytes were allowed.
    pub fn wait(&mut self, bytes: usize) {
        let now = Instant::now();
        let pause = self.pause(now, bytes);
        if !pause.is_zero() {
            thread::sleep(pause);
        }
    }

    fn pause(&mut self, now: Instant, bytes: usize) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.due = self.due.max(now) + cost;
        self.due.saturating_duration_since(now + BURST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_flood_waits() {
        let mut rate = Rate::new(1_000);
        let start = rate.due;
        assert_eq!(rate.pause(start, 1_000), Duration::ZERO);
        assert_eq!(rate.pause(start, 500), Duration::from_millis(500));
        assert_eq!(
            rate.pause(start + Duration::from_millis(500), 100),
            Duration::from_millis(100)
        );
        assert_eq!(rate.pause(start + Duration::from_secs(9), 1_000), Duration::ZERO);
    }
}
