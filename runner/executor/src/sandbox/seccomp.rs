//! seccomp: which system calls a process may make, by a filter that it gives itself (seccomp(2)).
//!
//! A list of what running a module needs; everything else fails with EPERM. What nobody but an intruder would try ends
//! the process. `runner/wherry_runner/execution/seccomp.py` has the same lists for the python executor, and a test
//! compares them.
//!
//! Why the filter is assembled here and not by a crate: each guest installs one while it starts. The kernel translates
//! it and evaluates it for every call there is; one that compares call by call takes a quarter of a millisecond, this
//! binary search 0.07 (as long as all else that a start costs before the module is instantiated). And a call that the
//! C library can do without needs another answer (ENOSYS) than one that is forbidden.

use std::io;
use std::sync::OnceLock;

use libc::{c_long, sock_filter};

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// What the filter answers to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    /// EPERM.
    Deny,
    /// ENOSYS: what the C library tries first and can do without.
    Unknown,
    /// Kill the whole process, by SIGSYS.
    Kill,
    /// Allow if an argument passes, else EPERM.
    If(Condition),
}

/// A condition on one argument (counted from 0): on its lower half, for that is all that the kernel reads in these calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    IsOneOf(u8, &'static [u32]),
    /// It is the number of the process that installed the filter.
    IsOwnProcess(u8),
    /// It has all bits of the mask.
    Has(u8, u32),
    /// It has none of them.
    HasNot(u8, u32),
    /// It is a null pointer, in both halves.
    IsNull(u8),
    /// The first times 2²⁴ and the second are one of these pairs, as `pair` makes them.
    PairIsOneOf(u8, u8, &'static [u32]),
}

const ALLOWED: &[c_long] = &[
    // Files and folders. Where they are is Landlock's matter.
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, and waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // Signals to itself: traps arrive as such, and so does the timer that keeps a CPU ceiling.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    // Clocks, random numbers, and what it is itself.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_nanosleep,
    libc::SYS_sysinfo,
    libc::SYS_times,
    libc::SYS_uname,
];

/// The older names of some of the above, which C libraries still use where they exist.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_HERE: &[c_long] = &[];

/// Of fcntl(2). Not in it: F_SETOWN, by which the kernel sends signals to others in our name; leases; locks.
const DESCRIPTOR_COMMANDS: &[u32] = &[
    libc::F_DUPFD as u32,
    libc::F_DUPFD_CLOEXEC as u32,
    libc::F_GETFD as u32,
    libc::F_GETFL as u32,
    libc::F_SETFD as u32,
    libc::F_SETFL as u32,
];

/// Of ioctl(2). TCGETS is how a C library asks whether something is a terminal.
const DEVICE_COMMANDS: &[u32] = &[
    libc::FIOCLEX as u32,
    libc::FIONBIO as u32,
    libc::FIONREAD as u32,
    libc::TCGETS as u32,
];

const CONDITIONAL: &[(c_long, Condition)] = &[
    // A thread of this process; not another process.
    (libc::SYS_clone, Condition::Has(0, libc::CLONE_THREAD as u32)),
    // The executor has mapped the module's code before; from then on memory is data.
    (libc::SYS_mmap, Condition::HasNot(2, libc::PROT_EXEC as u32)),
    (libc::SYS_mprotect, Condition::HasNot(2, libc::PROT_EXEC as u32)),
    (libc::SYS_fcntl, Condition::IsOneOf(1, DESCRIPTOR_COMMANDS)),
    (libc::SYS_ioctl, Condition::IsOneOf(1, DEVICE_COMMANDS)),
    // Threads give themselves names.
    (libc::SYS_prctl, Condition::IsOneOf(0, &[libc::PR_SET_NAME as u32])),
    // Limits are read and not changed.
    (libc::SYS_prlimit64, Condition::IsNull(2)),
    // By these abort(3) ends its own process.
    (libc::SYS_kill, Condition::IsOwnProcess(0)),
    (libc::SYS_tgkill, Condition::IsOwnProcess(0)),
];

/// What a server may do beside: take connections from the listening socket that it was given, and talk to who made them. It
/// can make no socket, and none that it has connects to anybody: an address that a message would be sent to is forbidden.
const OF_SERVERS: &[(c_long, Answer)] = &[
    (libc::SYS_accept4, Answer::Allow),
    (libc::SYS_shutdown, Answer::Allow),
    (libc::SYS_recvfrom, Answer::If(Condition::IsNull(4))),
    (libc::SYS_sendto, Answer::If(Condition::IsNull(4))),
    // Its first client is answered before it has its own weight. Of no other process and thread; and no more weight than it has
    // without a privilege.
    (
        libc::SYS_setpriority,
        Answer::If(Condition::PairIsOneOf(0, 1, OWN_PRIORITY)),
    ),
];

const OWN_PRIORITY: &[u32] = &[pair(libc::PRIO_PROCESS as i32, 0)];

/// What a guest may do beside that was granted a network, or ports to listen on: have sockets of TCP and UDP, and speak by them.
/// Where to is decided before, in the host's calls: a filter can't read addresses.
const OF_SOCKETS: &[(c_long, Answer)] = &[
    (libc::SYS_socket, Answer::If(Condition::PairIsOneOf(0, 1, SOCKETS))),
    (libc::SYS_setsockopt, Answer::If(Condition::PairIsOneOf(1, 2, OPTIONS))),
    // Without listen(2) nobody finds a TCP socket by it.
    (libc::SYS_bind, Answer::Allow),
    (libc::SYS_getpeername, Answer::Allow),
    (libc::SYS_getsockname, Answer::Allow),
    (libc::SYS_getsockopt, Answer::Allow),
    (libc::SYS_recvfrom, Answer::Allow),
    // Which would connect as well, and not every Landlock looks at it.
    (
        libc::SYS_sendto,
        Answer::If(Condition::HasNot(3, libc::MSG_FASTOPEN as u32)),
    ),
    (libc::SYS_shutdown, Answer::Allow),
];

/// Granted a network: connections of its own.
const OF_NETWORK: &[(c_long, Answer)] = &[(libc::SYS_connect, Answer::Allow)];

/// Granted ports: those of others.
const OF_LISTENERS: &[(c_long, Answer)] = &[(libc::SYS_listen, Answer::Allow), (libc::SYS_accept4, Answer::Allow)];

/// Families and types of sockets, with the flags that our libraries give them.
const SOCKETS: &[u32] = &[
    pair(libc::AF_INET, STREAM),
    pair(libc::AF_INET, DATAGRAM),
    pair(libc::AF_INET6, STREAM),
    pair(libc::AF_INET6, DATAGRAM),
];
const STREAM: i32 = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
const DATAGRAM: i32 = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;

/// Levels and options that wasi:sockets has functions for, and that our libraries set.
const OPTIONS: &[u32] = &[
    pair(libc::SOL_SOCKET, libc::SO_REUSEADDR),
    pair(libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    pair(libc::SOL_SOCKET, libc::SO_RCVBUF),
    pair(libc::SOL_SOCKET, libc::SO_SNDBUF),
    pair(libc::IPPROTO_IP, libc::IP_TTL),
    pair(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    pair(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
    pair(libc::IPPROTO_TCP, libc::TCP_NODELAY),
    pair(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    pair(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    pair(libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
];

const fn pair(first: i32, second: i32) -> u32 {
    (first as u32) << PAIR_SHIFT | second as u32
}

const PAIR_SHIFT: u32 = 24;

/// Which lists hold for a process beside that of every module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    pub server: bool,
    pub network: bool,
    /// It may listen on ports: no server does, whose listening socket is the runner's.
    pub listens: bool,
}

impl Calls {
    const ALL: [Calls; 6] = [
        Calls::new(false, false, false),
        Calls::new(true, false, false),
        Calls::new(false, true, false),
        Calls::new(true, true, false),
        Calls::new(false, false, true),
        Calls::new(false, true, true),
    ];

    const fn new(server: bool, network: bool, listens: bool) -> Calls {
        Calls {
            server,
            network,
            listens,
        }
    }

    fn number(self) -> usize {
        usize::from(self.server) + 2 * usize::from(self.network) + 4 * usize::from(self.listens)
    }
}

/// The C library takes clone(2) instead, whose flags a filter can see.
const UNKNOWN: &[c_long] = &[libc::SYS_clone3];

/// Other processes, other programs, the kernel's own machinery, and ways around this filter.
const KILLED: &[c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

#[cfg(target_arch = "x86_64")]
const KILLED_HERE: &[c_long] = &[libc::SYS_ioperm, libc::SYS_iopl, libc::SYS_modify_ldt];
#[cfg(target_arch = "aarch64")]
const KILLED_HERE: &[c_long] = &[];

/// The last system call that was weighed for these lists (mseal). A newer one is answered as by a kernel without it.
const LAST: c_long = 462;

/// Assembled once, by the executor: every guest's process finds it here.
static FILTERS: [OnceLock<Vec<sock_filter>>; 8] = [const { OnceLock::new() }; 8];

/// Assemble the filters, so that no child has to.
pub fn prepare() {
    for calls in Calls::ALL {
        filter(calls);
    }
}

fn filter(calls: Calls) -> &'static [sock_filter] {
    FILTERS[calls.number()].get_or_init(|| assemble(&ranges(calls)))
}

/// Give this process, which must have one thread, and its future threads the filter.
pub fn install(calls: Calls) -> io::Result<()> {
    let mut filter = filter(calls).to_vec();
    for instruction in &mut filter {
        if u32::from(instruction.code) == IF_EQUAL && instruction.k == OWN_PROCESS {
            instruction.k = std::process::id();
        }
    }
    let length = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog {
        len: length,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which has this length.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
    if answer == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// From which number on which answer holds, ascending from 0.
fn ranges(calls: Calls) -> Vec<(u32, Answer)> {
    let mut answers = vec![Answer::Deny; LAST as usize + 1];
    answers.push(Answer::Unknown);
    for (calls, answer) in [
        (ALLOWED, Answer::Allow),
        (ALLOWED_HERE, Answer::Allow),
        (UNKNOWN, Answer::Unknown),
        (KILLED, Answer::Kill),
        (KILLED_HERE, Answer::Kill),
    ] {
        for call in calls {
            answers[*call as usize] = answer;
        }
    }
    for (call, condition) in CONDITIONAL {
        answers[*call as usize] = Answer::If(*condition);
    }
    for (list, holds) in [
        (OF_SERVERS, calls.server),
        (OF_SOCKETS, calls.network || calls.listens),
        (OF_NETWORK, calls.network),
        (OF_LISTENERS, calls.listens),
    ] {
        for (call, answer) in list.iter().filter(|_| holds) {
            answers[*call as usize] = *answer;
        }
    }
    let mut ranges: Vec<(u32, Answer)> = (0..).zip(answers).collect();
    ranges.dedup_by_key(|(_, answer)| *answer);
    ranges
}

// Offsets in `struct seccomp_data`. Its arguments have 64 bits, lower half first on both architectures.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

fn lower_half(argument: u8) -> u32 {
    16 + 8 * u32::from(argument)
}

fn upper_half(argument: u8) -> u32 {
    lower_half(argument) + 4
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_LEFT: u32 = libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K;
const KEEP: u32 = libc::BPF_MISC | libc::BPF_TAX;
const OR_KEPT: u32 = libc::BPF_ALU | libc::BPF_OR | libc::BPF_X;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// In an assembled filter, where the number of the process belongs that installs it. No process has this one.
const OWN_PROCESS: u32 = u32::MAX;

fn fail(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// A filter: the search for the call's range, the tests of arguments, and each answer once, at the end, where all jumps
/// that lead to it can reach it (a jump only goes forward, and over 255 instructions at most).
fn assemble(ranges: &[(u32, Answer)]) -> Vec<sock_filter> {
    let mut filter = Assembler::default();
    filter.push(LOAD, ARCHITECTURE);
    filter.push(IF_EQUAL, AUDIT_ARCH);
    filter.jump_unless(Answer::Kill);
    filter.push(LOAD, NUMBER);
    filter.search(ranges);
    for (_, answer) in ranges {
        if let Answer::If(condition) = answer {
            filter.check(*condition);
        }
    }
    for (answer, value) in [
        (Answer::Kill, libc::SECCOMP_RET_KILL_PROCESS),
        (Answer::Unknown, fail(libc::ENOSYS)),
        (Answer::Deny, fail(libc::EPERM)),
        (Answer::Allow, libc::SECCOMP_RET_ALLOW),
    ] {
        filter.land(answer);
        filter.push(RETURN, value);
    }
    filter.program
}

#[derive(Default)]
struct Assembler {
    program: Vec<sock_filter>,
    /// Jumps whose target comes later: the instruction, whether it jumps if its condition holds or if not, and where to.
    open: Vec<(usize, bool, Answer)>,
}

impl Assembler {
    fn push(&mut self, code: u32, k: u32) {
        self.program.push(sock_filter {
            code: code as u16,
            jt: 0,
            jf: 0,
            k,
        });
    }

    /// The last instruction leads to this answer if its condition holds.
    fn jump_if(&mut self, answer: Answer) {
        self.open.push((self.program.len() - 1, true, answer));
    }

    fn jump_unless(&mut self, answer: Answer) {
        self.open.push((self.program.len() - 1, false, answer));
    }

    /// What comes next is this answer. Whether anything leads here.
    fn land(&mut self, answer: Answer) -> bool {
        let (landing, open): (Vec<_>, Vec<_>) = self.open.iter().copied().partition(|(_, _, target)| *target == answer);
        for (from, holds, _) in &landing {
            self.lead_here(*from, *holds);
        }
        self.open = open;
        !landing.is_empty()
    }

    fn lead_here(&mut self, from: usize, holds: bool) {
        let distance = u8::try_from(self.program.len() - from - 1).expect("a jump of at most 255 instructions");
        let jump = &mut self.program[from];
        *(if holds { &mut jump.jt } else { &mut jump.jf }) = distance;
    }

    /// Halve the ranges until there is one.
    fn search(&mut self, ranges: &[(u32, Answer)]) {
        let (lower, upper) = ranges.split_at(ranges.len() / 2);
        let fork = self.program.len();
        self.push(IF_AT_LEAST, upper[0].0);
        for (half, holds) in [(lower, false), (upper, true)] {
            if let [(_, answer)] = half {
                self.open.push((fork, holds, *answer));
            } else {
                self.lead_here(fork, holds);
                self.search(half);
            }
        }
    }

    /// Look at an argument, unless that is in the filter already: several calls share a test.
    fn check(&mut self, condition: Condition) {
        if !self.land(Answer::If(condition)) {
            return;
        }
        let (Condition::IsOneOf(argument, _)
        | Condition::IsOwnProcess(argument)
        | Condition::Has(argument, _)
        | Condition::HasNot(argument, _)
        | Condition::IsNull(argument)
        | Condition::PairIsOneOf(argument, ..)) = condition;
        self.push(LOAD, lower_half(argument));
        match condition {
            Condition::IsOneOf(_, values) => {
                for value in values {
                    self.allow_if_equal(*value);
                }
            }
            Condition::IsOwnProcess(_) => self.allow_if_equal(OWN_PROCESS),
            Condition::Has(_, mask) => {
                self.push(AND, mask);
                self.allow_if_equal(mask);
            }
            Condition::HasNot(_, mask) => {
                self.push(AND, mask);
                self.allow_if_equal(0);
            }
            Condition::PairIsOneOf(_, second, values) => {
                self.push(SHIFT_LEFT, PAIR_SHIFT);
                self.push(KEEP, 0);
                self.push(LOAD, lower_half(second));
                self.push(OR_KEPT, 0);
                for value in values {
                    self.allow_if_equal(*value);
                }
            }
            Condition::IsNull(_) => {
                self.push(IF_EQUAL, 0);
                self.jump_unless(Answer::Deny);
                self.push(LOAD, upper_half(argument));
                self.allow_if_equal(0);
            }
        }
        self.jump_unless(Answer::Deny);
    }

    fn allow_if_equal(&mut self, value: u32) {
        self.push(IF_EQUAL, value);
        self.jump_if(Answer::Allow);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u64; 6] = [0; 6];
    const COMMAND: Calls = Calls::new(false, false, false);
    const SERVER: Calls = Calls::new(true, false, false);
    const REACHES: Calls = Calls::new(false, true, false);
    const LISTENS: Calls = Calls::new(false, false, true);

    /// What the filter of process 42 answers, found as the kernel does: instruction by instruction.
    fn answer(architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        answer_of(COMMAND, architecture, number, arguments)
    }

    fn answer_of(calls: Calls, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, architecture, 0, 0];
        data.extend(
            arguments
                .iter()
                .flat_map(|argument| [*argument as u32, (argument >> 32) as u32]),
        );
        let filter = assemble(&ranges(calls));
        let (mut accumulator, mut kept, mut next) = (0, 0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[next];
            let k = if k == OWN_PROCESS { 42 } else { k };
            let jump = |holds| usize::from(if holds { jt } else { jf });
            next += 1;
            match u32::from(code) {
                LOAD => accumulator = data[k as usize / 4],
                AND => accumulator &= k,
                SHIFT_LEFT => accumulator <<= k,
                KEEP => kept = accumulator,
                OR_KEPT => accumulator |= kept,
                IF_EQUAL => next += jump(accumulator == k),
                IF_AT_LEAST => next += jump(accumulator >= k),
                RETURN => return k,
                _ => panic!("an instruction that the filter should not have"),
            }
        }
    }

    fn to(call: c_long, arguments: [u64; 6]) -> u32 {
        answer(AUDIT_ARCH, call as u32, arguments)
    }

    const DENIED: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const UNHEARD_OF: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    #[test]
    fn a_server_sets_its_own_priority_and_no_others() {
        let set = |calls, which, who| {
            answer_of(
                calls,
                AUDIT_ARCH,
                libc::SYS_setpriority as u32,
                [which, who, 19, 0, 0, 0],
            )
        };
        assert_eq!(set(SERVER, 0, 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(set(SERVER, 0, 1), fail(libc::EPERM));
        assert_eq!(set(SERVER, 1, 0), fail(libc::EPERM));
        assert_eq!(set(SERVER, 2, 0), fail(libc::EPERM));
        assert_eq!(set(COMMAND, 0, 0), fail(libc::EPERM));
    }

    #[test]
    fn every_call_is_answered_as_its_list_says() {
        for number in 0..=LAST {
            let allowed = ALLOWED.contains(&number) || ALLOWED_HERE.contains(&number);
            let killed = KILLED.contains(&number) || KILLED_HERE.contains(&number);
            let expected = match CONDITIONAL.iter().find(|(call, _)| *call == number) {
                Some(_) => continue,
                None if killed => libc::SECCOMP_RET_KILL_PROCESS,
                None if allowed => libc::SECCOMP_RET_ALLOW,
                None if UNKNOWN.contains(&number) => UNHEARD_OF,
                None => DENIED,
            };
            assert_eq!(to(number, NOTHING), expected, "system call {number}");
        }
    }

    #[test]
    fn no_call_is_in_two_lists() {
        let conditional: Vec<c_long> = CONDITIONAL.iter().map(|(call, _)| *call).collect();
        let mut all = [ALLOWED, ALLOWED_HERE, &conditional, UNKNOWN, KILLED, KILLED_HERE].concat();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn a_server_may_do_what_a_command_may_and_talk_to_who_called_it() {
        let (command, server) = (ranges(COMMAND), ranges(SERVER));
        let answer = |ranges: &[(u32, Answer)], call: c_long| {
            let place = ranges.partition_point(|(first, _)| *first <= call as u32);
            ranges[place - 1].1
        };
        for call in 0..=LAST {
            match OF_SERVERS.iter().find(|(known, _)| *known == call) {
                Some((_, expected)) => assert_eq!(answer(&server, call), *expected, "call {call}"),
                None => assert_eq!(answer(&server, call), answer(&command, call), "call {call}"),
            }
        }
        for call in [
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_sendmsg,
        ] {
            assert_eq!(answer(&server, call), Answer::Deny, "call {call}");
        }
    }

    #[test]
    fn a_network_is_tcp_and_udp_of_the_internet() {
        let to = |call: c_long, arguments| answer_of(REACHES, AUDIT_ARCH, call as u32, arguments);
        let (inet, inet6) = (libc::AF_INET as u64, libc::AF_INET6 as u64);
        let arguments = |first, second, third| [first, second, third, 0, 0, 0];
        for family in [inet, inet6] {
            for kind in [STREAM, DATAGRAM] {
                assert_eq!(
                    to(libc::SYS_socket, arguments(family, kind as u64, 0)),
                    libc::SECCOMP_RET_ALLOW
                );
            }
        }
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        for (family, kind) in [
            (libc::AF_UNIX, STREAM),
            (libc::AF_NETLINK, libc::SOCK_RAW | flags),
            (libc::AF_PACKET, DATAGRAM),
            (libc::AF_VSOCK, STREAM),
            (libc::AF_INET, libc::SOCK_RAW | flags),
            (libc::AF_INET6, libc::SOCK_SEQPACKET | flags),
        ] {
            assert_eq!(
                to(libc::SYS_socket, arguments(family as u64, kind as u64, 0)),
                DENIED,
                "{family} {kind}"
            );
        }
        let option = |level: i32, option: i32| to(libc::SYS_setsockopt, arguments(5, level as u64, option as u64));
        assert_eq!(option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY), libc::SECCOMP_RET_ALLOW);
        assert_eq!(
            option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER),
            DENIED,
            "the same number of another level"
        );
        assert_eq!(option(libc::SOL_SOCKET, libc::SO_BINDTODEVICE), DENIED);
        let flags = |flags: i32| to(libc::SYS_sendto, [3, 0, 0, flags as u64, 0, 0]);
        assert_eq!(flags(libc::MSG_NOSIGNAL), libc::SECCOMP_RET_ALLOW);
        assert_eq!(flags(libc::MSG_NOSIGNAL | libc::MSG_FASTOPEN), DENIED);
        for call in [
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_sendmsg,
            libc::SYS_recvmsg,
            libc::SYS_socketpair,
        ] {
            assert_eq!(to(call, NOTHING), DENIED, "call {call}");
        }
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_sendto] {
            assert_eq!(
                answer(AUDIT_ARCH, call as u32, arguments(inet, STREAM as u64, 0)),
                DENIED,
                "call {call}"
            );
        }
    }

    #[test]
    fn who_listens_connects_to_nobody() {
        let to = |call: c_long| {
            let arguments = [libc::AF_INET as u64, STREAM as u64, 0, 0, 0, 0];
            answer_of(LISTENS, AUDIT_ARCH, call as u32, arguments)
        };
        for call in [
            libc::SYS_socket,
            libc::SYS_bind,
            libc::SYS_listen,
            libc::SYS_accept4,
            libc::SYS_sendto,
        ] {
            assert_eq!(to(call), libc::SECCOMP_RET_ALLOW, "call {call}");
        }
        for call in [libc::SYS_connect, libc::SYS_sendmsg, libc::SYS_socketpair] {
            assert_eq!(to(call), DENIED, "call {call}");
        }
    }

    #[test]
    fn newer_calls_are_unheard_of_and_other_architectures_end_the_process() {
        const X32: u32 = 0x4000_0000;
        for number in [LAST as u32 + 1, X32, X32 | libc::SYS_write as u32, u32::MAX] {
            assert_eq!(answer(AUDIT_ARCH, number, NOTHING), UNHEARD_OF);
        }
        const I386: u32 = 0x4000_0003;
        assert_eq!(
            answer(I386, libc::SYS_write as u32, NOTHING),
            libc::SECCOMP_RET_KILL_PROCESS
        );
    }

    #[test]
    fn arguments_decide_where_the_call_does_not() {
        let first = |value: u64| [value, 0, 0, 0, 0, 0];
        let second = |value: u64| [0, value, 0, 0, 0, 0];
        let third = |value: u64| [0, 0, value, 0, 0, 0];
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
        let executable = (libc::PROT_READ | libc::PROT_EXEC) as u64;
        for (call, allowed, denied) in [
            (libc::SYS_clone, first(thread), first(libc::SIGCHLD as u64)),
            (libc::SYS_mmap, third(libc::PROT_READ as u64), third(executable)),
            (libc::SYS_mprotect, third(libc::PROT_NONE as u64), third(executable)),
            (
                libc::SYS_fcntl,
                second(libc::F_GETFL as u64),
                second(libc::F_SETOWN as u64),
            ),
            (
                libc::SYS_fcntl,
                second(libc::F_DUPFD_CLOEXEC as u64),
                second(libc::F_SETLEASE as u64),
            ),
            (libc::SYS_ioctl, second(libc::TCGETS), second(libc::TIOCSTI)),
            (
                libc::SYS_prctl,
                first(libc::PR_SET_NAME as u64),
                first(libc::PR_SET_DUMPABLE as u64),
            ),
            (libc::SYS_prlimit64, third(0), third(0x1000)),
            (libc::SYS_prlimit64, third(0), third(1 << 32)),
            (libc::SYS_kill, first(42), first(41)),
            (libc::SYS_tgkill, first(42), first(0)),
            (libc::SYS_kill, first(42), first(-1_i64 as u64)),
        ] {
            assert_eq!(to(call, allowed), libc::SECCOMP_RET_ALLOW, "system call {call}");
            assert_eq!(to(call, denied), DENIED, "system call {call}");
        }
    }
}
