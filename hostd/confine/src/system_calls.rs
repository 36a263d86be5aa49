//! Which system calls remain, and with which arguments.
//!
//! Each list is what the process was seen to use (strace(1) over its tests), with the neighbours that the same
//! libraries use on other kernels. What is not here ends the process. Arguments that are pointers cannot be looked at;
//! files are Landlock's and the mount namespace's matter.

use std::collections::BTreeMap;

use nix::libc;
use nix::unistd::Pid;
use seccompiler::{SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompRule};

use crate::error::ConfineError;

/// What a filter is made from.
pub(crate) struct Rules {
    /// Passes when one of the rules matches; no rules: always.
    pub(crate) allowed: BTreeMap<i64, Vec<SeccompRule>>,
    /// Answered with ENOSYS, for callers that then take another way.
    pub(crate) absent: Vec<i64>,
}

/// Flags of a thread that glibc (first) and musl start: shares everything, and no new namespace.
const THREAD_FLAGS: [u64; 2] = [0x003d_0f00, 0x007d_0f00];

/// `PAGEMAP_SCAN` of linux/fs.h: `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// `PR_SET_VMA` of linux/prctl.h: the name of a mapping.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// `PIDFD_SELF` of linux/pidfd.h (-10000), as the filter sees it.
const PIDFD_SELF: u64 = 0xffff_d8f0;

type Calls = &'static [i64];

/// Memory, threads, time, signals to itself: what any process with a runtime needs.
const COMMON: Calls = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_lseek,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcpu,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_membarrier,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Reading: which files is the mount namespace's and Landlock's matter, and none of them can be written.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_getcwd,
];

/// The same by their older names, which some machines have and their libraries use.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: Calls =
    &[libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: Calls = &[];

/// Connections that it was given, and waiting for them.
const SERVER: Calls = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_dup,
];

/// Files that apps brought along, as wasmtime-wasi opens them and lets guests handle them: all of them are read-only.
const BUNDLED_FILES: Calls = &[libc::SYS_openat2, libc::SYS_fadvise64, libc::SYS_fsync, libc::SYS_fdatasync];

#[cfg(target_arch = "x86_64")]
const SERVER_OLD: Calls = &[libc::SYS_epoll_wait, libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const SERVER_OLD: Calls = &[];

/// There are ways without these: `clone`, `statx` by its older names.
const ABSENT: Calls = &[libc::SYS_clone3, libc::SYS_faccessat2];

/// Options of sockets: level and names.
const SOCKET_OPTIONS: &[(i32, &[i32])] = &[
    (libc::SOL_SOCKET, &[libc::SO_KEEPALIVE, libc::SO_LINGER, libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_REUSEADDR]),
    (
        libc::IPPROTO_TCP,
        &[
            libc::TCP_NODELAY,
            libc::TCP_CORK,
            libc::TCP_KEEPIDLE,
            libc::TCP_KEEPINTVL,
            libc::TCP_KEEPCNT,
            libc::TCP_USER_TIMEOUT,
            libc::TCP_QUICKACK,
            libc::TCP_NOTSENT_LOWAT,
        ],
    ),
];

/// A worker.
pub(crate) fn worker(own: Pid, mapped_code: bool) -> Result<Rules, ConfineError> {
    let mut list = List::new(&[COMMON, COMMON_OLD, SERVER, SERVER_OLD, BUNDLED_FILES]);
    list.threads_of(own)?;
    list.when(libc::SYS_mmap, &[&[without(2, libc::PROT_EXEC)]])?;
    list.when(libc::SYS_mprotect, &[&[without(2, libc::PROT_EXEC)]])?;
    if mapped_code {
        // From a file, and none that this process can open can be written.
        list.when(libc::SYS_mmap, &[&[without(2, libc::PROT_WRITE), without(3, libc::MAP_ANONYMOUS)]])?;
    } else {
        // Mapped to be read, then made executable: never writable at once.
        list.when(libc::SYS_mprotect, &[&[without(2, libc::PROT_WRITE)]])?;
    }
    list.when(libc::SYS_process_madvise, &[&[is(0, PIDFD_SELF), is(3, number(libc::MADV_DONTNEED))]])?;
    list.when(libc::SYS_ioctl, &[&[is(1, PAGEMAP_SCAN)], &[is(1, libc::FIONBIO)], &[is(1, libc::TCGETS)]])?;
    list.when(libc::SYS_socketpair, &[&[is(0, number(libc::AF_UNIX))]])?;
    for (level, names) in SOCKET_OPTIONS {
        for name in *names {
            list.when(libc::SYS_setsockopt, &[&[is(1, number(*level)), is(2, number(*name))]])?;
        }
    }
    Ok(list.done())
}

/// The compiler. It never runs what it makes, so it maps nothing executable.
pub(crate) fn compiler(own: Pid) -> Result<Rules, ConfineError> {
    let mut list = List::new(&[COMMON, COMMON_OLD, &[libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_ppoll]]);
    list.threads_of(own)?;
    list.when(libc::SYS_mmap, &[&[without(2, libc::PROT_EXEC)]])?;
    list.when(libc::SYS_mprotect, &[&[without(2, libc::PROT_EXEC)]])?;
    list.when(libc::SYS_ioctl, &[&[is(1, libc::TCGETS)]])?;
    Ok(list.done())
}

/// The process that waits.
pub(crate) fn outer(own: Pid, child: Pid) -> Result<Rules, ConfineError> {
    let mut list = List::new(&[&[
        libc::SYS_read,
        libc::SYS_ppoll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_wait4,
        libc::SYS_waitid,
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_restart_syscall,
        libc::SYS_getpid,
        libc::SYS_gettid,
        libc::SYS_close,
        libc::SYS_brk,
        libc::SYS_munmap,
        libc::SYS_madvise,
        libc::SYS_futex,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ]]);
    // The standard library looks, in builds with assertions, whether what it closes is open.
    list.when(libc::SYS_fcntl, &[&[is(1, number(libc::F_GETFD))]])?;
    for pid in [own, child] {
        list.when(libc::SYS_kill, &[&[is(0, number(pid.as_raw()))]])?;
    }
    list.when(libc::SYS_mmap, &[&[without(2, libc::PROT_EXEC)]])?;
    list.when(libc::SYS_mprotect, &[&[without(2, libc::PROT_EXEC)]])?;
    Ok(list.done())
}

/// One argument and what it must be.
struct Argument {
    index: u8,
    length: Len,
    op: Op,
    value: u64,
}

/// The lower 32 bits, which is all that the kernel looks at where this is used.
fn is(index: u8, value: u64) -> Argument {
    Argument { index, length: Len::Dword, op: Op::Eq, value }
}

/// No pointer.
fn null(index: u8) -> Argument {
    Argument { index, length: Len::Qword, op: Op::Eq, value: 0 }
}

fn without(index: u8, bit: i32) -> Argument {
    Argument { index, length: Len::Dword, op: Op::MaskedEq(number(bit)), value: 0 }
}

/// A number of the C headers as the filter sees its lower 32 bits.
fn number(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

struct List(BTreeMap<i64, Vec<SeccompRule>>);

impl List {
    fn new(always: &[Calls]) -> Self {
        Self(always.iter().flat_map(|calls| calls.iter()).map(|call| (*call, Vec::new())).collect())
    }

    /// Passes when all arguments of one of the alternatives match.
    fn when(&mut self, call: i64, alternatives: &[&[Argument]]) -> Result<(), ConfineError> {
        let fault = |e: seccompiler::BackendError| ConfineError::Filter(e.to_string());
        for arguments in alternatives {
            let conditions =
                arguments.iter().map(|a| SeccompCondition::new(a.index, a.length.clone(), a.op.clone(), a.value));
            let conditions = conditions.collect::<Result<Vec<_>, _>>().map_err(fault)?;
            self.0.entry(call).or_default().push(SeccompRule::new(conditions).map_err(fault)?);
        }
        Ok(())
    }

    /// Threads, their names and limits, and the signal of an abort, which goes to no other process.
    fn threads_of(&mut self, own: Pid) -> Result<(), ConfineError> {
        self.when(libc::SYS_clone, &[&[is(0, THREAD_FLAGS[0])], &[is(0, THREAD_FLAGS[1])]])?;
        self.when(libc::SYS_tgkill, &[&[is(0, number(own.as_raw()))]])?;
        self.when(libc::SYS_prctl, &[&[is(0, number(libc::PR_SET_NAME))], &[is(0, PR_SET_VMA)]])?;
        // Reads a limit of its own, sets none.
        self.when(libc::SYS_prlimit64, &[&[is(0, 0), null(2)]])?;
        let dup = libc::F_DUPFD_CLOEXEC;
        for command in [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, dup] {
            self.when(libc::SYS_fcntl, &[&[is(1, number(command))]])?;
        }
        Ok(())
    }

    fn done(mut self) -> Rules {
        for call in ABSENT {
            self.0.insert(*call, Vec::new());
        }
        Rules { allowed: self.0, absent: ABSENT.to_vec() }
    }
}
