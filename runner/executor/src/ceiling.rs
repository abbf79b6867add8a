//! A ceiling on a guest's CPU time, kept by its own process.
//!
//! A timer on the process's CPU time fires when a period's share is used up, and its handler sleeps until that share's time
//! has passed. An idle guest uses no CPU time, so it costs nothing; nobody outside has to look (facts: executor.md, trap 6).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::Relaxed};

const PERIOD_NANOSECONDS: i64 = 100_000_000;

/// A guest runs on one thread: a ceiling of a whole core or more is none.
const CORE_MILLICORES: u64 = 1000;

/// What the handler needs; one guest to a process. Written before the timer is set for the first time, and then by the
/// handler alone, which never runs twice at once.
static MILLICORES: AtomicI64 = AtomicI64::new(0);
static TIMER: AtomicUsize = AtomicUsize::new(0);
static CPU_THEN: AtomicI64 = AtomicI64::new(0);
static WALL_THEN: AtomicI64 = AtomicI64::new(0);

/// Keep this process below so much of a core from now on.
pub fn keep(millicores: u64) -> io::Result<()> {
    if millicores >= CORE_MILLICORES {
        return Ok(());
    }
    MILLICORES.store(millicores.max(1) as i64, Relaxed);
    CPU_THEN.store(now(libc::CLOCK_PROCESS_CPUTIME_ID), Relaxed);
    WALL_THEN.store(now(libc::CLOCK_MONOTONIC), Relaxed);

    // SAFETY: an all-zero `sigaction` is a valid one. Then a handler is installed that calls only what is safe in one; it
    // runs on wasmtime's alternate stack, because wasm runs on stacks of its own that may be nearly full.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_used_up as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGPROF, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: an all-zero `sigevent` is a valid one; the timer's id is written before it is read.
    let timer = unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGPROF;
        let mut timer = MaybeUninit::uninit();
        if libc::timer_create(libc::CLOCK_PROCESS_CPUTIME_ID, &mut event, timer.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        timer.assume_init()
    };
    TIMER.store(timer as usize, Relaxed);
    set_timer();
    Ok(())
}

/// The share is used up. Runs as a signal handler, in the middle of anything.
extern "C" fn on_used_up(_signal: libc::c_int) {
    // SAFETY: the address of this thread's own errno, which the interrupted code may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    let cpu = now(libc::CLOCK_PROCESS_CPUTIME_ID);
    // Measured, not assumed: the kernel looks at such timers only at its ticks, so more may be used than the share.
    let used = cpu - CPU_THEN.swap(cpu, Relaxed);
    let until = WALL_THEN.load(Relaxed) + used * CORE_MILLICORES as i64 / MILLICORES.load(Relaxed);
    sleep_until(until);
    WALL_THEN.store(now(libc::CLOCK_MONOTONIC).max(until), Relaxed);
    set_timer();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Let the timer fire once, when another share is used up.
fn set_timer() {
    let share = MILLICORES.load(Relaxed) * PERIOD_NANOSECONDS / CORE_MILLICORES as i64;
    let value = libc::itimerspec {
        it_interval: timespec(0),
        it_value: timespec(share),
    };
    // SAFETY: the timer was made before this is called for the first time, and is never deleted.
    unsafe { libc::timer_settime(TIMER.load(Relaxed) as libc::timer_t, 0, &value, ptr::null_mut()) };
}

fn sleep_until(moment: i64) {
    let moment = timespec(moment);
    // SAFETY: the time outlives the call; what would remain isn't asked for.
    while unsafe { libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &moment, ptr::null_mut()) }
        == libc::EINTR
    {}
}

fn now(clock: libc::clockid_t) -> i64 {
    let mut time = timespec(0);
    // SAFETY: writes to a variable that outlives the call; both clocks exist on every Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

fn timespec(nanoseconds: i64) -> libc::timespec {
    libc::timespec {
        tv_sec: nanoseconds / 1_000_000_000,
        tv_nsec: nanoseconds % 1_000_000_000,
    }
}
