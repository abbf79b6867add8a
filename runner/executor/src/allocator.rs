//! The system's allocator; where it has nothing more to give, a guest's process says so before it ends.
//!
//! A guest can make the host allocate (open files, handles, waits) beside its own memory. RLIMIT_DATA bounds that, and a
//! Rust program that gets no memory aborts: without this, nobody would learn why.

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use crate::process;
use crate::report::TRAP_EXIT_CODE;

/// Written as it is: there is no memory to format it in.
const WORD: &str = concat!(
    r#"{"outcome":"trapped","exitCode":134,"message":"the host's side of this module (its open files, streams and handles) "#,
    r#"needs more memory than there is beside the module's own","memoryRefused":true}"#
);

/// A guest's; 0: this is the executor. (Not -1: that would lie among data that is nowhere else written to, a page for each guest.)
static REPORT: AtomicI32 = AtomicI32::new(0);

struct Reporting;

#[global_allocator]
static ALLOCATOR: Reporting = Reporting;

/// In a guest's process: where its last word goes.
pub fn report_failure_to(report: RawFd) {
    REPORT.store(report, Relaxed);
}

/// No memory: the end of a guest's process. In the executor, the caller's affair.
fn checked(memory: *mut u8) -> *mut u8 {
    let report = REPORT.load(Relaxed);
    if memory.is_null() && report > 0 {
        // SAFETY: this descriptor is closed by nobody.
        let report = unsafe { BorrowedFd::borrow_raw(report) };
        let _ = rustix::io::write(report, WORD.as_bytes());
        process::exit(TRAP_EXIT_CODE);
    }
    memory
}

// SAFETY: hands every call on to the system's allocator as it came; what that requires of its caller is what this requires.
unsafe impl GlobalAlloc for Reporting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        checked(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        checked(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        checked(unsafe { System.realloc(memory, layout, size) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { System.dealloc(memory, layout) }
    }
}
