"""Numbers of system calls: of those that the sandbox names (`sandbox.py`, `landlock.py`, `seccomp.py`).

They are part of the kernel's ABI, which never changes; a test compares them with the kernel's own headers.
"""

from __future__ import annotations

import os

_TABLE = """
acct=163/89 add_key=248/217 adjtimex=159/171 bpf=321/280 brk=12/214 chroot=161/51 clock_adjtime=305/266
clock_getres=229/114 clock_gettime=228/113 clock_nanosleep=230/115 clock_settime=227/112 clone=56/220 clone3=435/435
close=3/57 close_range=436/436 delete_module=176/106 dup=32/23 dup2=33/- dup3=292/24 epoll_create1=291/20
epoll_ctl=233/21 epoll_pwait=281/22 epoll_pwait2=441/441 epoll_wait=232/- eventfd2=290/19 execve=59/221
execveat=322/281 exit=60/93 exit_group=231/94 fadvise64=221/223 fallocate=285/47 fcntl=72/25 fdatasync=75/83
finit_module=313/273 fsconfig=431/431 fsmount=432/432 fsopen=430/430 fspick=433/433 fstat=5/80 fstatfs=138/44
fsync=74/82 ftruncate=77/46 futex=202/98 getcpu=309/168 getdents=78/- getdents64=217/61 getegid=108/177
geteuid=107/175 getgid=104/176 getpid=39/172 getppid=110/173 getrandom=318/278 getrlimit=97/163 getrusage=98/165
gettid=186/178 gettimeofday=96/169 getuid=102/174 init_module=175/105 io_uring_enter=426/426
io_uring_register=427/427 io_uring_setup=425/425 ioctl=16/29 ioperm=173/- iopl=172/- kcmp=312/272 kexec_load=246/104
keyctl=250/219 kill=62/129 landlock_add_rule=445/445 landlock_create_ruleset=444/444 landlock_restrict_self=446/446
link=86/- linkat=265/37 lseek=8/62 lstat=6/- madvise=28/233 membarrier=324/283 mkdir=83/- mkdirat=258/34 mmap=9/222
modify_ldt=154/- mount=165/40 mount_setattr=442/442 move_mount=429/429 mprotect=10/226 mremap=25/216 munmap=11/215
nanosleep=35/101 newfstatat=262/79 open=2/- open_by_handle_at=304/265 open_tree=428/428 openat=257/56
openat2=437/437 perf_event_open=298/241 personality=135/92 pidfd_getfd=438/438 pidfd_open=434/434
pidfd_send_signal=424/424 pivot_root=155/41 poll=7/- ppoll=271/73 prctl=157/167 pread64=17/67 preadv=295/69
preadv2=327/286 prlimit64=302/261 process_madvise=440/440 process_vm_readv=310/270 process_vm_writev=311/271
pselect6=270/72 ptrace=101/117 pwrite64=18/68 pwritev=296/70 pwritev2=328/287 quotactl=179/60 read=0/63
readlink=89/- readlinkat=267/78 readv=19/65 reboot=169/142 rename=82/- renameat=264/38 renameat2=316/276
request_key=249/218 restart_syscall=219/128 rmdir=84/- rseq=334/293 rt_sigaction=13/134 rt_sigpending=127/136
rt_sigprocmask=14/135 rt_sigreturn=15/139 rt_sigsuspend=130/133 rt_sigtimedwait=128/137 sched_getaffinity=204/123
sched_yield=24/124 seccomp=317/277 select=23/- set_robust_list=273/99 set_tid_address=218/96 setdomainname=171/162
sethostname=170/161 setns=308/268 settimeofday=164/170 sigaltstack=131/132 stat=4/- statx=332/291 swapoff=168/225
swapon=167/224 symlink=88/- symlinkat=266/36 sysinfo=99/179 tgkill=234/131 time=201/- timer_create=222/107
timer_delete=226/111 timer_getoverrun=225/109 timer_gettime=224/108 timer_settime=223/110 times=100/153
umount2=166/39 uname=63/160 unlink=87/- unlinkat=263/35 unshare=272/97 userfaultfd=323/282 utimensat=280/88
vhangup=153/58 write=1/64 writev=20/66
"""
"""NAME=X86_64/AARCH64. What has no number on aarch64 is an older name of a call that is there too."""


def _numbers(column: int) -> dict[str, int]:
    rows = (entry.split("=") for entry in _TABLE.split())
    return {name: int(number) for name, numbers in rows if (number := numbers.split("/")[column]) != "-"}


BY_MACHINE = {"x86_64": _numbers(0), "aarch64": _numbers(1)}

HERE = BY_MACHINE.get(os.uname().machine, {})
"""Of this machine; empty on one that the sandbox doesn't know."""
