//! The clock of a server's instances: at each tick one that computes lets the others, and the server itself, have their turn.
//!
//! It ticks with the CPU time of this process, by a signal. So an idle server costs nothing, nobody outside has to tick for
//! it, and it ticks whatever the server's only thread is doing.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use wasmtime::Engine;

const TICK_NANOSECONDS: i64 = 10_000_000;

/// What the handler needs; written once, before the signal can come.
static ENGINE: AtomicPtr<Engine> = AtomicPtr::new(ptr::null_mut());

/// Let the engine's epoch advance from now on, for as long as this process lives.
pub fn tick(engine: &Engine) -> io::Result<()> {
    ENGINE.store(Box::leak(Box::new(engine.clone())), Relaxed);
    // SAFETY: an all-zero `sigaction` is a valid one. Then a handler is installed that calls only what is safe in one; it
    // runs on wasmtime's alternate stack, because wasm runs on stacks of its own that may be nearly full.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_tick as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
        if libc::sigaction(libc::SIGVTALRM, &action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let tick = libc::timespec {
        tv_sec: 0,
        tv_nsec: TICK_NANOSECONDS,
    };
    let every = libc::itimerspec {
        it_interval: tick,
        it_value: tick,
    };
    // SAFETY: an all-zero `sigevent` is a valid one; the timer's id is written before it is read.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGVTALRM;
        let mut timer = MaybeUninit::uninit();
        if libc::timer_create(libc::CLOCK_PROCESS_CPUTIME_ID, &mut event, timer.as_mut_ptr()) != 0
            || libc::timer_settime(timer.assume_init(), 0, &every, ptr::null_mut()) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Runs as a signal handler, in the middle of anything.
extern "C" fn on_tick(_signal: libc::c_int) {
    // SAFETY: null, or a leaked box that nobody changes. Advancing an epoch is one atomic addition.
    if let Some(engine) = unsafe { ENGINE.load(Relaxed).as_ref() } {
        engine.increment_epoch();
    }
}
