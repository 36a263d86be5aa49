//! What a process keeps. Everything else is taken.

use std::os::fd::RawFd;
use std::path::PathBuf;

use marcato_api::Bytes;

/// Which list of system calls remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Serves connections from descriptors that it was given, with code mapped from its folder.
    Worker,
    /// Reads one component and writes its code, both through descriptors that it was given.
    Compiler,
}

/// What a process keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which list of system calls remains after [`seal`](crate::seal()).
    pub profile: Profile,
    /// Folders or files to read, by absolute path; at the same path inside. Bound as they are at the start: one that
    /// is removed and made anew is not seen. Readable for `unprivileged_user`: a process of root's has files of mode
    /// 0644 in folders of mode 0755 here, below a folder of mode 0700 that keeps others out.
    pub read_only: Vec<PathBuf>,
    /// Folders or files to read and write, by absolute path.
    pub read_write: Vec<PathBuf>,
    /// Descriptors above 2 that stay open; all others are closed.
    pub keep_open: Vec<RawFd>,
    /// Whether code becomes executable by being mapped from its file alone. Then no memory can be made executable, and
    /// as no file can be written, nothing that the process writes can be run.
    pub mapped_code: bool,
    /// Most open descriptors.
    pub open_files: u64,
    /// Most threads. Counted where the process has a user namespace of its own; else the kernel would count all
    /// processes of its user.
    pub threads: u64,
    /// Most address space. `None` for a process whose pool reserves terabytes of it.
    pub address_space: Option<Bytes>,
    /// Longest file that it may write. Concerns inherited descriptors too: `None` where standard error may be a file.
    pub file_size: Option<Bytes>,
    /// CPU time over its life, in seconds.
    pub cpu_seconds: Option<u64>,
    /// User and group to become, where it starts as root.
    pub unprivileged_user: Option<(u32, u32)>,
    /// A control group (v2) of its own, made and limited by who starts it.
    pub cgroup: Option<PathBuf>,
}

/// The first of the users that nobody has: systemd's table of ids leaves 1879048192 to 2147483647 unused.
const FIRST_WORKER_USER: u32 = 0x7000_0000;

/// A user and group of nobody else, by number: processes of different numbers cannot touch each other's files.
#[must_use]
pub fn worker_user(number: u16) -> (u32, u32) {
    let id = FIRST_WORKER_USER + u32::from(number);
    (id, id)
}

impl Plan {
    /// A worker: reads these folders, keeps these descriptors (its listeners and its line to the host's daemon).
    #[must_use]
    pub fn worker(read_only: Vec<PathBuf>, keep_open: Vec<RawFd>) -> Self {
        Self {
            profile: Profile::Worker,
            read_only,
            read_write: Vec::new(),
            keep_open,
            // The runtime does so on this platform (`marcato_runtime`, `code_memory`).
            mapped_code: cfg!(target_arch = "x86_64"),
            open_files: 65_536,
            threads: 512,
            address_space: None,
            file_size: None,
            cpu_seconds: None,
            unprivileged_user: Some(worker_user(0)),
            cgroup: None,
        }
    }

    /// The compiler: no file at all, but what it is given opened. Memory and CPU time are limited before, by who runs it.
    #[must_use]
    pub fn compiler(keep_open: Vec<RawFd>) -> Self {
        Self {
            profile: Profile::Compiler,
            open_files: 64,
            threads: 64,
            file_size: Some(Bytes(2 << 30)),
            unprivileged_user: Some(worker_user(u16::MAX)),
            ..Self::worker(Vec::new(), keep_open)
        }
    }
}
