//! What confines a guest's process, before the first byte of its module is interpreted.
//!
//! Three gates of the kernel, all open to an unprivileged process, none of which can be opened again:
//!
//! - **no_new_privs**: no setuid program and no file capability gives it anything.
//! - **Landlock** (`landlock.rs`): the guest's folders and its log's folder are all of the file system; no TCP port
//!   but those that it is granted, no abstract Unix socket of others, no signal to others, no ptrace of others.
//! - **seccomp** (`seccomp.rs`): a list of the system calls that running a module needs. No process, no socket but a
//!   server's own (or, granted a network or ports to listen on, those of the internet), no program, no executable memory.
//!
//! WebAssembly is the wall; this is what somebody who came through it would find. The calls are made directly: there are
//! four, and the crates for them add what must not be here, a best effort that gives less than was asked for in silence.
//! What the kernel has is tried once, in `probe`; from then on each guest gets exactly that or is not run.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::ptr::null_mut;

mod landlock;
mod seccomp;

pub use seccomp::Calls;

/// What is in force for every guest on this kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    pub no_new_privileges: bool,
    /// Version of the kernel's Landlock interface that is used; 0: none.
    pub landlock_abi: u32,
    pub seccomp: bool,
}

/// A folder that the guest may use.
pub struct Folder {
    pub descriptor: RawFd,
    pub writable: bool,
}

/// What a process may reach of what Landlock guards.
#[derive(Default)]
pub struct Reach<'a> {
    pub folders: &'a [Folder],
    /// The folder of its log files.
    pub log: Option<RawFd>,
    /// The TCP ports that it may connect to, first and last; none: no network.
    pub connect: Option<&'a [(u16, u16)]>,
    /// The TCP ports that it may bind.
    pub bind: &'a [u16],
}

/// Try what this kernel gives, in a child that is thrown away. For a process with one thread, which stays as it was.
///
/// A gate counts when what it forbids was seen to fail.
///
/// # Panics
/// If no child can be made: then no guest could be.
pub fn probe() -> Confinement {
    seccomp::prepare();
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors into the array.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }).expect("a pipe for trying the confinement");
    // SAFETY: with one thread, the child may do all that its parent may. It leaves by `_exit` and returns nowhere.
    let child = check(unsafe { libc::fork() }).expect("a process for trying the confinement");
    if child == 0 {
        let found = try_all();
        let bytes = [
            u8::from(found.no_new_privileges),
            found.landlock_abi as u8,
            u8::from(found.seccomp),
        ];
        // SAFETY: writes what the array holds, and ends without running anything that belongs to the parent.
        unsafe {
            libc::write(ends[1], bytes.as_ptr().cast(), bytes.len());
            libc::_exit(0);
        }
    }
    // Stays as it is if the child died of a gate: then there is none that could be relied on.
    let mut bytes = [0_u8; 3];
    // SAFETY: closes the pipe's ends, once each; the kernel writes no more than the array holds; and nobody else reaps
    // the child.
    unsafe {
        libc::close(ends[1]);
        libc::read(ends[0], bytes.as_mut_ptr().cast(), bytes.len());
        libc::close(ends[0]);
        libc::waitpid(child, null_mut(), 0);
    }
    Confinement {
        no_new_privileges: bytes[0] == 1,
        landlock_abi: bytes[1].into(),
        seccomp: bytes[2] == 1,
    }
}

/// In a child: close one gate after the other, and see whether it holds.
fn try_all() -> Confinement {
    let none = Confinement::default();
    let closes = |gate| {
        Sandbox::new(gate, &Reach::default(), Calls::default())
            .and_then(Sandbox::enter)
            .is_ok()
    };
    let no_new_privileges = closes(Confinement {
        no_new_privileges: true,
        ..none
    });
    let landlock_abi = landlock::abi();
    let landlock = closes(Confinement { landlock_abi, ..none }) && errno_of(open_root()) == libc::EACCES;
    let seccomp = closes(Confinement { seccomp: true, ..none }) && errno_of(open_socket()) == libc::EPERM;
    Confinement {
        no_new_privileges,
        landlock_abi: if landlock { landlock_abi } else { 0 },
        seccomp,
    }
}

/// What a process is about to be confined to.
///
/// Made while its folders are open, and entered when they have been handed over to WASI, which opens each anew: were ours
/// still open then, only half as many would fit into a guest's limit of descriptors.
pub struct Sandbox {
    confinement: Confinement,
    ruleset: Option<OwnedFd>,
    calls: Calls,
}

impl Sandbox {
    /// Fails if the kernel does not take a folder.
    pub fn new(confinement: Confinement, reach: &Reach, calls: Calls) -> Result<Sandbox, String> {
        let ruleset = match confinement.landlock_abi {
            0 => None,
            abi => Some(landlock::ruleset(abi, reach).map_err(|error| failed("Landlock", &error))?),
        };
        Ok(Sandbox {
            confinement,
            ruleset,
            calls,
        })
    }

    /// Confine this process, which must have one thread, and the threads that it will start. There is no way back.
    ///
    /// From here on nothing can be opened but what is in its folders. Fails if a gate does not close: the guest must then
    /// not be run.
    pub fn enter(self) -> Result<(), String> {
        if self.confinement.no_new_privileges {
            forbid_new_privileges().map_err(|error| failed("no_new_privs", &error))?;
        }
        if let Some(ruleset) = self.ruleset {
            landlock::enforce(&ruleset).map_err(|error| failed("Landlock", &error))?;
        }
        if self.confinement.seccomp {
            // Last, for it forbids the calls that the others are made of.
            seccomp::install(self.calls).map_err(|error| failed("seccomp", &error))?;
        }
        Ok(())
    }
}

fn failed(gate: &str, error: &io::Error) -> String {
    format!("this process can't be confined by {gate}: {error}")
}

fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: changes a flag of this process.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

fn open_root() -> i32 {
    // SAFETY: opens a folder for reading; the process ends soon after.
    unsafe { libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC) }
}

fn open_socket() -> i32 {
    // SAFETY: makes a socket; the process ends soon after.
    unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }
}

/// The errno of a call that has just failed; 0 if it didn't.
fn errno_of(answer: i32) -> i32 {
    check(answer).err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

/// A system call's answer, or why it failed.
fn check(answer: i32) -> io::Result<i32> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}
