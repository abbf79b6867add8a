//! What this process and its children ask of the kernel, beyond what `rustix` has a name for. Nothing here knows of
//! WebAssembly.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use rustix::process::{DumpableBehavior, Pid, Resource, Rlimit, Signal};

/// Let the kernel kill this process (SIGKILL) when its parent dies; exit at once if that has happened already.
///
/// The signal fires when the *thread* that forked ends. It does not survive a fork: every generation asks for it anew.
pub fn die_with_parent(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the call above; then the kernel has nobody left to watch.
    if rustix::process::getppid() != Some(parent) {
        exit(1);
    }
    Ok(())
}

/// Make this process undumpable: others of the same user can't read its memory or descriptors.
pub fn forbid_inspection() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// No setuid or file capability gives this process anything, ever.
pub fn forbid_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}

/// Set both limits, where a higher one isn't in force already that can't be raised.
pub fn limit(resource: Resource, value: u64) -> io::Result<()> {
    let maximum = rustix::process::getrlimit(resource)
        .maximum
        .map_or(value, |maximum| value.min(maximum));
    Ok(rustix::process::setrlimit(
        resource,
        Rlimit {
            current: Some(maximum),
            maximum: Some(maximum),
        },
    )?)
}

/// As many descriptors as this process may have.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    Ok(rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?)
}

/// What RLIMIT_DATA counts of this process now, in bytes.
pub fn data_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/statm")?;
    let pages = status
        .split_ascii_whitespace()
        .nth(5)
        .and_then(|number| number.parse::<u64>().ok());
    let pages = pages.ok_or_else(|| io::Error::other("/proc/self/statm has no sixth number"))?;
    Ok(pages * rustix::param::page_size() as u64)
}

/// How many threads this process has.
pub fn threads() -> io::Result<usize> {
    Ok(fs::read_dir("/proc/self/task")?.count())
}

/// Close every descriptor but these.
pub fn close_all_but(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut first = 0;
    for descriptor in kept.iter().map(|&number| number as u32).chain([u32::MAX]) {
        if first < descriptor {
            close_range(first, descriptor - 1)?;
        }
        first = descriptor.saturating_add(1);
    }
    Ok(())
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes numbers only. Whoever owned one of these descriptors is never dropped: this runs in a forked child,
    // which leaves by `exit` without returning to the code that owns them.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

unsafe extern "C" {
    /// fork(2) and nothing else (POSIX.1-2024). `fork` also prepares the C library's own data for a process that may have had other
    /// threads: pages that are then each child's own.
    fn _Fork() -> libc::pid_t;
}

/// A copy of this process: None in the child.
///
/// The child has only the thread that called this, so the caller must be the only one: a lock that another thread held
/// would never be released. No handler of `pthread_atfork` runs.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread (checked after each load), so the child's copy of all state is consistent.
    match unsafe { _Fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// End this process at once: nothing that its parent prepared is cleaned up twice.
pub fn exit(code: i32) -> ! {
    // SAFETY: has no requirements.
    unsafe { libc::_exit(code) }
}

/// How a child ended.
pub struct Ending {
    pub pid: i32,
    /// Exit code, or the signal that ended it.
    pub how: Result<i32, i32>,
    pub max_rss_bytes: u64,
    /// User and system.
    pub cpu_nanoseconds: u64,
}

/// Reap a child that has ended; None while there is none.
pub fn reap() -> Option<Ending> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid one: it holds numbers only.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to variables that outlive the call.
    let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
    if pid <= 0 {
        return None;
    }
    let nanoseconds = |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1_000;
    Some(Ending {
        pid,
        how: if libc::WIFEXITED(status) {
            Ok(libc::WEXITSTATUS(status))
        } else {
            Err(libc::WTERMSIG(status))
        },
        max_rss_bytes: usage.ru_maxrss as u64 * 1024,
        cpu_nanoseconds: nanoseconds(usage.ru_utime) + nanoseconds(usage.ru_stime),
    })
}
