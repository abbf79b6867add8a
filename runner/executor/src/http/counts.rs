//! What a server counts (`HttpCounts` in `wherry_runner/http_counts.py`).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper ends of the histogram's buckets, Prometheus' own defaults; the last bucket has none.
const BUCKETS_MILLISECONDS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];
const BUCKETS: usize = BUCKETS_MILLISECONDS.len() + 1;

/// Each is written by this process alone, and is never torn for who reads it.
#[derive(Default)]
#[repr(C)]
pub struct Counts {
    /// Answers by their status: 1xx to 5xx.
    answers: [AtomicU64; 5],
    /// How long they took, from a request's head to the end of its answer, in nanoseconds together.
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    /// Being worked on now.
    requests: AtomicU64,
    /// Open now.
    connections: AtomicU64,
    /// Answered 503, for there were too many at once.
    refused: AtomicU64,
    /// Trapped, or could not be instantiated.
    failed: AtomicU64,
    /// Not done in time.
    overdue: AtomicU64,
}

impl Counts {
    pub fn connection_opened(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub fn connection_closed(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub fn request_begun(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    pub fn request_over(&self) {
        self.requests.fetch_sub(1, Relaxed);
    }

    pub fn refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub fn overdue(&self) {
        self.overdue.fetch_add(1, Relaxed);
    }

    pub fn answered(&self, status: u16, after: Duration) {
        let class = usize::from(status / 100).clamp(1, self.answers.len()) - 1;
        self.answers[class].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(after.as_nanos() as u64, Relaxed);
        let bucket = BUCKETS_MILLISECONDS.partition_point(|&end| Duration::from_millis(end) < after);
        self.buckets[bucket].fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_counted_by_its_class_and_in_one_bucket() {
        let counts = Counts::default();
        for (status, milliseconds) in [(200, 5), (204, 6), (503, 60_000), (999, 0)] {
            counts.answered(status, Duration::from_millis(milliseconds));
        }
        let read = |numbers: &[AtomicU64]| numbers.iter().map(|number| number.load(Relaxed)).collect::<Vec<_>>();
        assert_eq!(read(&counts.answers), [0, 2, 0, 0, 2]);
        assert_eq!(read(&counts.buckets), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(counts.nanoseconds.load(Relaxed), 60_011_000_000);
    }
}
