//! Signals: the executor reads SIGCHLD from a descriptor, a guest's process has them as a new process would.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};

/// A descriptor that is readable when a child has ended.
pub fn child_ends() -> io::Result<OwnedFd> {
    readable(&only(libc::SIGCHLD))
}

/// A descriptor that is readable when this process was asked to end (SIGTERM), which then ends nothing by itself.
pub fn termination() -> io::Result<OwnedFd> {
    readable(&only(libc::SIGTERM))
}

fn readable(set: &libc::sigset_t) -> io::Result<OwnedFd> {
    block(libc::SIG_BLOCK, set)?;
    // SAFETY: the set is initialised and outlives the call.
    let descriptor = unsafe { libc::signalfd(-1, set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Forget which children ended, as far as the descriptor tells: whoever asks next is told only of later ends.
pub fn drain(descriptor: &OwnedFd) {
    let mut seen = [0; 4 * size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(descriptor, &mut seen).is_ok_and(|count| count == seen.len()) {}
}

/// Keep SIGTERM until somebody asks for it: a server that is asked to end before it can listen to that ends all the same in order.
pub fn hold_termination() -> io::Result<()> {
    block(libc::SIG_BLOCK, &only(libc::SIGTERM))
}

/// The opposite.
pub fn release_termination() -> io::Result<()> {
    block(libc::SIG_UNBLOCK, &only(libc::SIGTERM))
}

/// In a child: as if it had never been the executor's copy, but for SIGTERM, which is kept (`hold_termination`). A file that is too
/// large is an error of the write, not a death.
pub fn reset() -> io::Result<()> {
    block(libc::SIG_UNBLOCK, &only(libc::SIGCHLD))?;
    // SAFETY: ignores a signal; no handler runs.
    if unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn only(signal: libc::c_int) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises the set, which `sigaddset` then changes; neither fails for a valid signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        set.assume_init()
    }
}

fn block(how: i32, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: the set is initialised and outlives the call; the old mask isn't asked for.
    match unsafe { libc::sigprocmask(how, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
