//! How large a log may be now: the table that the supervisor writes (`wherry_runner/logs/allowances.py`).

use std::io;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// Bytes that each of a log's two files may have. Another number at any moment: read it before each write.
#[derive(Clone, Copy)]
pub struct Allowance {
    now: &'static AtomicU64,
    at_most: u64,
}

impl Allowance {
    pub fn bytes(self) -> u64 {
        self.now.load(Relaxed).min(self.at_most)
    }

    /// As the process's own limit on files (RLIMIT_FSIZE) has it: beyond that no log can be written either.
    pub fn no_more_than(self, file_bytes: Option<u64>) -> Allowance {
        Allowance {
            at_most: file_bytes.unwrap_or(u64::MAX),
            ..self
        }
    }

    /// One that nobody changes.
    #[cfg(test)]
    pub fn of(bytes: u64) -> Allowance {
        Allowance {
            now: Box::leak(Box::new(AtomicU64::new(bytes))),
            at_most: u64::MAX,
        }
    }
}

/// The table. Mapped once, by the executor; guests inherit the mapping.
pub struct Allowances(&'static [AtomicU64]);

impl Allowances {
    /// Map the table, for as long as this process lives.
    pub fn map(descriptor: OwnedFd) -> io::Result<Allowances> {
        if !fcntl_get_seals(&descriptor)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("the table of log allowances can shrink"));
        }
        let bytes = usize::try_from(fstat(&descriptor)?.st_size).unwrap_or(0);
        let slots = bytes / size_of::<u64>();
        if slots == 0 {
            return Err(io::Error::other("the table of log allowances is empty"));
        }
        // SAFETY: a new mapping, which no one else knows. It is never unmapped, and the file behind it can't shrink, so the
        // slice is valid for ever. A page is aligned for any number. The supervisor writes whole aligned 64-bit numbers,
        // which is what atomics are for.
        let table = unsafe {
            let start = mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::SHARED,
                &descriptor,
                0,
            )?;
            slice::from_raw_parts(start.cast::<AtomicU64>(), slots)
        };
        Ok(Allowances(table))
    }

    /// A log's; for a slot that isn't there, that of slot 0, which is everybody's default.
    pub fn slot(&self, number: usize) -> Allowance {
        Allowance {
            now: self.0.get(number).unwrap_or(&self.0[0]),
            at_most: u64::MAX,
        }
    }
}
