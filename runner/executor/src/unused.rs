//! Gives memory back that a process has and does not use, whenever it is about to wait.
//!
//! Most guests wait nearly all the time. What they took to get there, they keep: the stack below where they wait, and whole pages
//! of the heap that nothing is left on. That, or a copy of what the executor had there when it forked, is 10 pages of 38.

use std::cell::Cell;
use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// So far below where a process waits its stack is looked for. Nothing else lies there: the kernel maps nothing in the first
/// 128 MiB below a stack's beginning (`mmap_base`, arch/x86/mm/mmap.c and mm/util.c).
const STACK_BYTES: usize = 1 << 20;

/// A stack of a process does not become larger than this, or what lies there is no part of it.
const WHOLE_STACK_BYTES: usize = 8 << 20;

/// Left to what runs while it is given back.
const OWN_BYTES: usize = 4 << 10;

/// Between two times, at first and at last: it costs a few microseconds, and pages that are needed again cost half of one each.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// When it was done last, and how long nothing is done from then on.
#[derive(Clone, Copy)]
struct Last {
    at: Instant,
    pause: Duration,
}

/// Where a process began to be a guest's, on the stack that it began with; 0: it did not.
static BEGINNING: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static LAST: Cell<Option<Last>> = const { Cell::new(None) };
}

/// Remember where the stack is. To be called where a guest's process begins.
#[inline(never)]
pub fn begins_here() {
    let here = 0_u8;
    BEGINNING.store(ptr::from_ref(black_box(&here)).addr(), Relaxed);
}

/// Whether something is done the next time.
///
/// A process begins with many short waits and comes to rest in a long one that can't be told from them. So the first is one, and
/// then each that comes after twice the time, until it is a second.
pub fn is_due() -> bool {
    LAST.get().is_none_or(|last| last.at.elapsed() >= last.pause)
}

/// Give back what is not used. To be called before a wait.
pub fn give_back() {
    if !is_due() {
        return;
    }
    let pause = LAST.get().map_or(FIRST_PAUSE, |last| LAST_PAUSE.min(last.pause * 2));
    give_back_stack();
    LAST.set(Some(Last {
        at: Instant::now(),
        pause,
    }));
}

#[inline(never)]
fn give_back_stack() {
    let here = 0_u8;
    let here = ptr::from_ref(black_box(&here)).addr();
    if BEGINNING.load(Relaxed).wrapping_sub(here) > WHOLE_STACK_BYTES {
        return; // a thread's, or that of a module's call: what lies below may be somebody's
    }
    let end = (here - OWN_BYTES) & !(rustix::param::page_size() - 1);
    // SAFETY: whatever calls this lies above, and what is called from here fits into what is left to it. Below that the stack holds
    // nothing that is read again. Where nothing is mapped nothing happens (ENOMEM).
    unsafe {
        libc::madvise(
            ptr::without_provenance_mut(end - STACK_BYTES),
            STACK_BYTES,
            libc::MADV_DONTNEED,
        )
    };
}
