//! What a server counts, in a page that the supervisor reads (`wherry_runner/http_counts.py` has the same layout).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Upper ends of the histogram's buckets, Prometheus' own defaults; the last bucket has none.
const BUCKETS_MILLISECONDS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];
const BUCKETS: usize = BUCKETS_MILLISECONDS.len() + 1;

/// Each is written by this process alone, and is never torn for who reads it.
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
    /// Map the page, for as long as this process lives.
    pub fn map(descriptor: OwnedFd) -> io::Result<&'static Counts> {
        let fits = fstat(&descriptor)?.st_size as usize >= size_of::<Counts>();
        if !fits || !fcntl_get_seals(&descriptor)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("the page of counts is too small, or can shrink"));
        }
        // SAFETY: a new mapping, which no one else in this process knows. It is never unmapped, and the file behind it is
        // large enough and can't shrink, so the reference is valid for ever. A page is aligned for any number, all bytes
        // are valid ones, and who else reads them reads whole numbers.
        unsafe {
            let start = mmap(
                std::ptr::null_mut(),
                size_of::<Counts>(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &descriptor,
                0,
            )?;
            Ok(&*start.cast::<Counts>())
        }
    }

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
        let zero = || AtomicU64::new(0);
        let counts = Counts {
            answers: Default::default(),
            nanoseconds: zero(),
            buckets: Default::default(),
            requests: zero(),
            connections: zero(),
            refused: zero(),
            failed: zero(),
            overdue: zero(),
        };
        for (status, milliseconds) in [(200, 5), (204, 6), (503, 60_000), (999, 0)] {
            counts.answered(status, Duration::from_millis(milliseconds));
        }
        let read = |numbers: &[AtomicU64]| numbers.iter().map(|number| number.load(Relaxed)).collect::<Vec<_>>();
        assert_eq!(read(&counts.answers), [0, 2, 0, 0, 2]);
        assert_eq!(read(&counts.buckets), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(counts.nanoseconds.load(Relaxed), 60_011_000_000);
    }
}
