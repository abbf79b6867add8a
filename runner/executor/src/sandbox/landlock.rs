//! Landlock: which files a process may reach, by rules that it gives itself (landlock(7)).
//!
//! Every right that the kernel's version knows is taken away, and then given back below the guest's own folders. A right
//! counts when a file is opened: what is open already stays as it is. Seen from outside, the process is in a domain of
//! its own: it can't ptrace a process that isn't in it, nor read its memory, and from version 6 on not signal it.
//!
//! Not covered by Landlock: what stat(2) and chmod(2) and their like do by a path, and Unix sockets that are files. For
//! those there is seccomp.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

use super::Reach;

/// The newest version whose rights are all named below; what later ones add is not used.
const NEWEST_KNOWN: u32 = 7;

// Rights of <linux/landlock.h>, LANDLOCK_ACCESS_FS_*.
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SYM: u64 = 1 << 12;
/// Renaming and linking from one folder to another (version 2).
const REFER: u64 = 1 << 13;
/// Version 3.
const TRUNCATE: u64 = 1 << 14;

const READ: u64 = READ_FILE | READ_DIR;
/// All that WASI has functions for: no devices, pipes or sockets are made, and nothing is executed.
const READ_WRITE: u64 =
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE;
/// A log file is made, appended to and renamed over the one before it.
const LOG: u64 = WRITE_FILE | MAKE_REG | REMOVE_FILE | TRUNCATE;

/// How many rights a version has; they are numbered without gaps.
fn rights(abi: u32) -> u64 {
    let count = match abi {
        0 => 0,
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << count) - 1
}

// Rights of <linux/landlock.h>, LANDLOCK_ACCESS_NET_* (version 4).
const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 1 << 1;

/// A rule each: with more ports than that, connecting is left to the other gates.
const MAX_PORTS: usize = 1024;

/// `struct landlock_ruleset_attr`. The kernel takes a longer one than it knows if the rest is 0.
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

impl Ruleset {
    /// `connects`: connecting by TCP is not taken away.
    fn of(abi: u32, connects: bool) -> Ruleset {
        Ruleset {
            handled_access_fs: rights(abi),
            handled_access_net: match (abi, connects) {
                (..4, _) => 0,
                (_, true) => BIND_TCP,
                (_, false) => BIND_TCP | CONNECT_TCP,
            },
            // Abstract Unix sockets and signals.
            scoped: if abi >= 6 { 0b11 } else { 0 },
        }
    }
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct NetPort {
    allowed_access: u64,
    port: u64,
}

/// The version that this kernel has and that is used; 0 if it has none.
pub fn abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag nothing is read or made.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null::<Ruleset>(), 0_usize, VERSION) };
    u32::try_from(answer).unwrap_or(0).min(NEWEST_KNOWN)
}

/// Rules by which nothing is left but this.
pub fn ruleset(abi: u32, reach: &Reach) -> io::Result<OwnedFd> {
    let ports = ports(reach.connect.unwrap_or_default());
    let attribute = Ruleset::of(abi, ports.is_none());
    // SAFETY: the kernel reads a structure of this size.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, &attribute, size_of::<Ruleset>(), 0) };
    let number = RawFd::try_from(answer)
        .ok()
        .filter(|number| *number >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: a descriptor that was just made and that nobody else knows.
    let ruleset = unsafe { OwnedFd::from_raw_fd(number) };
    for folder in reach.folders {
        allow(
            &ruleset,
            folder.descriptor,
            rights(abi) & if folder.writable { READ_WRITE } else { READ },
        )?;
    }
    if let Some(descriptor) = reach.log {
        allow(&ruleset, descriptor, rights(abi) & LOG)?;
    }
    if attribute.handled_access_net & CONNECT_TCP != 0 {
        for port in ports.into_iter().flatten() {
            allow_port(&ruleset, port, CONNECT_TCP)?;
        }
    }
    if attribute.handled_access_net & BIND_TCP != 0 && reach.connect.is_some() {
        // Any port, as the kernel chooses: what a socket that connects gets by itself.
        allow_port(&ruleset, 0, BIND_TCP)?;
    }
    if attribute.handled_access_net & BIND_TCP != 0 {
        for port in reach.bind {
            allow_port(&ruleset, *port, BIND_TCP)?;
        }
    }
    Ok(ruleset)
}

/// Keep this thread, and those that it will start, to the rules.
pub fn enforce(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })
}

fn allow(ruleset: &OwnedFd, folder: RawFd, access: u64) -> io::Result<()> {
    const PATH_BENEATH: u32 = 1;
    let rule = PathBeneath {
        allowed_access: access,
        parent_fd: folder,
    };
    // SAFETY: the kernel reads the structure that belongs to this type of rule.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &rule, 0) })
}

/// Each of these ports once; None if they are too many for rules.
fn ports(ranges: &[(u16, u16)]) -> Option<BTreeSet<u16>> {
    let count: usize = ranges.iter().map(|(first, last)| (*first..=*last).len()).sum();
    (count <= MAX_PORTS).then(|| ranges.iter().flat_map(|(first, last)| *first..=*last).collect())
}

fn allow_port(ruleset: &OwnedFd, port: u16, access: u64) -> io::Result<()> {
    const NET_PORT: u32 = 2;
    let rule = NetPort {
        allowed_access: access,
        port: port.into(),
    };
    // SAFETY: the kernel reads the structure that belongs to this type of rule.
    check(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), NET_PORT, &rule, 0) })
}

fn check(answer: libc::c_long) -> io::Result<()> {
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_has_the_rights_that_the_kernel_documents() {
        assert_eq!(rights(0), 0);
        assert_eq!(rights(1), MAKE_SYM | (MAKE_SYM - 1));
        assert_eq!(rights(2), rights(1) | REFER);
        assert_eq!(rights(3), rights(2) | TRUNCATE);
        assert_eq!(rights(4), rights(3));
        assert_eq!(rights(5), rights(4) | 1 << 15, "device control");
        assert_eq!(rights(NEWEST_KNOWN), rights(5));
    }

    #[test]
    fn nothing_is_taken_away_that_the_version_lacks() {
        for abi in 1..=NEWEST_KNOWN {
            let ruleset = Ruleset::of(abi, false);
            assert_eq!(ruleset.handled_access_net != 0, abi >= 4);
            assert_eq!(Ruleset::of(abi, true).handled_access_net & CONNECT_TCP, 0);
            assert_eq!(ruleset.scoped != 0, abi >= 6);
        }
    }

    #[test]
    fn ports_become_a_rule_each_unless_they_are_too_many() {
        let some = ports(&[(80, 80), (443, 445), (444, 444)]);
        assert_eq!(some.unwrap().into_iter().collect::<Vec<_>>(), [80, 443, 444, 445]);
        assert_eq!(ports(&[]), Some(BTreeSet::new()));
        assert_eq!(ports(&[(1, 65_535)]), None);
    }
}
