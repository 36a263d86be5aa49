//! The attacks by name. Each says what it gained, or with which error the kernel refused.
#![allow(unsafe_code, reason = "an attacker does not use safe wrappers; each call is made with arguments of its own")]

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::FromRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use marcato_confine::{ConfinementReport, Measure};
use nix::libc;

type Gained = io::Result<String>;

fn ret(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// A system call by number.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {
        // SAFETY: the drill is the attacker: every pointer below is to memory that it made for the call, or null.
        ret(unsafe { libc::syscall($number $(, $argument)*) })
    };
}

fn text(path: &str) -> io::Result<CString> {
    CString::new(path).map_err(io::Error::other)
}

fn number(word: &str) -> io::Result<i32> {
    word.parse().map_err(io::Error::other)
}

fn gained(what: &str) -> Gained {
    Ok(what.to_owned())
}

/// Before an attack outside the confinement: mounts, names and segments are made in namespaces that go with this
/// process, so that an attack that works does not break the machine. Says whether that is so.
pub(crate) fn harmless_to_the_machine(attack: &str) -> bool {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    if !["mount", "unmount", "host-name", "shared-memory", "keyring"].contains(&attack) {
        return true;
    }
    let own = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    // Without the right to a copy there is no right to the attack either.
    if unshare(own).or_else(|_| unshare(own | CloneFlags::CLONE_NEWUSER)).is_err() {
        return false;
    }
    call!(libc::SYS_keyctl, 1, std::ptr::null::<u8>()).is_ok()
        && mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).is_ok()
}

/// Runs one.
pub(crate) fn run(attack: &str, words: &[String], report: &ConfinementReport) -> Gained {
    let at = |n: usize| words.get(n).map(String::as_str).ok_or_else(|| io::Error::other("an argument is missing"));
    match attack {
        "report" => Ok(tell(report)),
        "nothing" => gained("nothing was tried"),
        "exit" => std::process::exit(number(at(0)?)?),
        "abort" => std::process::abort(),
        "wait" => wait(),
        "await-term" => await_term(),
        "threads" => threads(),
        "user" => Ok(format!("{} {}", nix::unistd::getuid(), nix::unistd::getgid())),
        _ => files(attack, &at)
            .or_else(|| network(attack, &at))
            .or_else(|| processes(attack, &at))
            .or_else(|| kernel(attack, &at))
            .or_else(|| memory(attack, &at))
            .unwrap_or_else(|| Err(io::Error::other(format!("no attack {attack:?}")))),
    }
}

fn tell(report: &ConfinementReport) -> String {
    let line = |measure: &Measure| {
        let found = report.measures.iter().find(|m| m.measure == *measure);
        let detail = found.map_or("", |m| m.detail.as_str());
        format!("{measure} {} {detail}", if report.has(*measure) { "had" } else { "missing" })
    };
    let pid = report.pid.map_or_else(String::new, |p| p.to_string());
    let lines: Vec<_> = Measure::ALL.iter().map(line).collect();
    format!("{}\nfull {}\npid {pid}", lines.join("\n"), report.is_full())
}

/// Says that it is there, and stays until it is ended.
fn wait() -> Gained {
    let mut out = io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush())?;
    loop {
        std::thread::park();
    }
}

fn await_term() -> Gained {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn note(_: libc::c_int) {
        let fd = TERM.load(std::sync::atomic::Ordering::SeqCst);
        // SAFETY: write(2) may be called in a handler; one byte of static memory.
        unsafe { libc::write(fd, b"t".as_ptr().cast(), 1) };
    }
    let (mut read, write) = io::pipe()?;
    TERM.store(std::os::fd::IntoRawFd::into_raw_fd(write), std::sync::atomic::Ordering::SeqCst);
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler calls write(2) alone.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    let mut out = io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush())?;
    read.read_exact(&mut [0])?;
    gained("told to end")
}

static TERM: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);

/// What a worker does all day must go on.
fn threads() -> Gained {
    let workers: Vec<_> = (0..4).map(|n| std::thread::Builder::new().name(format!("t{n}")).spawn(move || n)).collect();
    let mut sum = 0;
    for worker in workers {
        sum += worker?.join().map_err(|_| io::Error::other("panicked"))?;
    }
    let (left, mut right) = UnixStream::pair()?;
    left.try_clone()?.write_all(b"x")?;
    right.read_exact(&mut [0])?;
    let big = vec![1_u8; 64 << 20];
    Ok(format!("{sum} {}", big.len()))
}

type At<'a> = dyn Fn(usize) -> io::Result<&'a str> + 'a;

fn files(attack: &str, at: &At<'_>) -> Option<Gained> {
    let run = |f: &dyn Fn() -> Gained| Some(f());
    match attack {
        "read" => run(&|| fs::read_to_string(at(0)?)),
        "list" => run(&|| {
            let names = fs::read_dir(at(0)?)?.map(|e| Ok(e?.file_name().to_string_lossy().into_owned()));
            Ok(names.collect::<io::Result<Vec<_>>>()?.join(" "))
        }),
        "overwrite" => run(&|| {
            OpenOptions::new().write(true).open(at(0)?)?.write_all(b"pwned")?;
            gained("wrote")
        }),
        "create" => run(&|| File::create_new(at(0)?).map(|_| "created".into())),
        "remove" => run(&|| fs::remove_file(at(0)?).map(|()| "removed".into())),
        "chmod" => run(&|| {
            let path = text(at(0)?)?;
            call!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_ptr(), 0o777).map(|_| "changed".into())
        }),
        "link" => run(&|| fs::hard_link(at(0)?, at(1)?).map(|()| "linked".into())),
        "use-descriptor" => run(&|| {
            let mut found = [0_u8; 64];
            let read = call!(libc::SYS_pread64, number(at(0)?)?, found.as_mut_ptr(), found.len(), 0)?;
            let found = String::from_utf8_lossy(&found[..usize::try_from(read).unwrap_or(0)]).into_owned();
            Ok(found)
        }),
        "handle" => run(&|| {
            // A file by its handle goes around every path, and around every folder that would keep one out.
            use std::os::fd::AsRawFd;
            let (path, near) = (text(at(0)?)?, File::open(at(0)?)?);
            let mut handle = [0_u32; 34];
            handle[0] = 128;
            let mut mount = 0;
            let here = libc::AT_FDCWD;
            call!(libc::SYS_name_to_handle_at, here, path.as_ptr(), handle.as_mut_ptr(), &raw mut mount, 0)?;
            call!(libc::SYS_open_by_handle_at, near.as_raw_fd(), handle.as_mut_ptr(), 0).map(|_| "opened".into())
        }),
        _ => None,
    }
}

fn network(attack: &str, at: &At<'_>) -> Option<Gained> {
    let run = |f: &dyn Fn() -> Gained| Some(f());
    match attack {
        "connect" => run(&|| {
            let mut answer = String::new();
            TcpStream::connect(at(0)?)?.read_to_string(&mut answer)?;
            Ok(answer)
        }),
        "listen" => run(&|| TcpListener::bind("127.0.0.1:0").map(|_| "listens".into())),
        "datagram" => run(&|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", at(0)?).map(|_| "sent".into())),
        "connect-unix" => run(&|| {
            let mut answer = String::new();
            UnixStream::connect(at(0)?)?.read_to_string(&mut answer)?;
            Ok(answer)
        }),
        "connect-abstract" => run(&|| {
            use std::os::linux::net::SocketAddrExt;
            let address = std::os::unix::net::SocketAddr::from_abstract_name(at(0)?)?;
            let mut answer = String::new();
            UnixStream::connect_addr(&address)?.read_to_string(&mut answer)?;
            Ok(answer)
        }),
        "listen-unix" => run(&|| UnixListener::bind(at(0)?).map(|_| "listens".into())),
        "netlink" => run(&|| {
            call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(|_| "a socket".into())
        }),
        "raw-socket" => {
            run(&|| call!(libc::SYS_socket, libc::AF_PACKET, libc::SOCK_RAW, 0x0300).map(|_| "a socket".into()))
        }
        _ => None,
    }
}

fn processes(attack: &str, at: &At<'_>) -> Option<Gained> {
    let run = |f: &dyn Fn() -> Gained| Some(f());
    match attack {
        "signal" => run(&|| call!(libc::SYS_kill, number(at(0)?)?, libc::SIGKILL).map(|_| "sent".into())),
        "signal-all" => run(&|| call!(libc::SYS_kill, -1, 0).map(|_| "somebody is there".into())),
        "trace" => run(&|| {
            let none = std::ptr::null::<u8>();
            call!(libc::SYS_ptrace, libc::PTRACE_SEIZE, number(at(0)?)?, none, none).map(|_| "attached".into())
        }),
        "read-memory" => run(&|| {
            let mut byte = [0_u8; 8];
            let here = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 8 };
            let address = usize::from_str_radix(at(1)?, 16).map_err(io::Error::other)?;
            let there = libc::iovec { iov_base: std::ptr::without_provenance_mut(address), iov_len: 8 };
            let pid = number(at(0)?)?;
            call!(libc::SYS_process_vm_readv, pid, &raw const here, 1, &raw const there, 1, 0)
                .map(|n| format!("{n} bytes"))
        }),
        "steal-descriptor" => run(&|| {
            let pid = call!(libc::SYS_pidfd_open, number(at(0)?)?, 0)?;
            call!(libc::SYS_pidfd_getfd, pid, 0, 0).map(|_| "a descriptor of another process".into())
        }),
        "exec" => run(&|| {
            let program = text(at(0)?)?;
            let arguments = [program.as_ptr(), std::ptr::null()];
            let environment = [std::ptr::null::<libc::c_char>()];
            call!(libc::SYS_execve, program.as_ptr(), arguments.as_ptr(), environment.as_ptr()).map(|_| String::new())
        }),
        "fork" => run(&|| {
            let none = std::ptr::null::<u8>();
            match call!(libc::SYS_clone, libc::SIGCHLD, none, none, none, none)? {
                // SAFETY: the child only ends.
                0 => unsafe { libc::_exit(0) },
                _ => gained("a second process"),
            }
        }),
        "priority" => run(&|| call!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, -5).map(|_| "raised".into())),
        "become-root" => run(&|| call!(libc::SYS_setresuid, 0, 0, 0).map(|_| "root".into())),
        _ => None,
    }
}

fn kernel(attack: &str, at: &At<'_>) -> Option<Gained> {
    let run = |f: &dyn Fn() -> Gained| Some(f());
    let none = std::ptr::null::<u8>();
    match attack {
        "user-namespace" => run(&|| {
            // unshare(2) is refused to one of several threads, so by a process that would be alone.
            let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
            match call!(libc::SYS_clone, flags, none, none, none, none)? {
                // SAFETY: the child only ends.
                0 => unsafe { libc::_exit(0) },
                _ => gained("a namespace with every right"),
            }
        }),
        "network-namespace" => run(&|| call!(libc::SYS_unshare, libc::CLONE_NEWNET).map(|_| "a namespace".into())),
        "enter-namespace" => run(&|| {
            let fd = File::open(at(0)?)?;
            call!(libc::SYS_setns, std::os::fd::AsRawFd::as_raw_fd(&fd), 0).map(|_| "another's namespace".into())
        }),
        "mount" => run(&|| {
            let (kind, place) = (text("tmpfs")?, text(at(0)?)?);
            call!(libc::SYS_mount, kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, none).map(|_| "mounted".into())
        }),
        "unmount" => run(&|| {
            let place = text(at(0)?)?;
            call!(libc::SYS_umount2, place.as_ptr(), libc::MNT_DETACH).map(|_| "unmounted".into())
        }),
        "chroot" => run(&|| {
            let place = text("/")?;
            call!(libc::SYS_chroot, place.as_ptr()).map(|_| "changed".into())
        }),
        "host-name" => run(&|| {
            let name = text("marcato-drill")?;
            call!(libc::SYS_sethostname, name.as_ptr(), 13).map(|_| "changed".into())
        }),
        "module" => run(&|| {
            let options = text("")?;
            call!(libc::SYS_init_module, none, 0, options.as_ptr()).map(|_| "loaded".into())
        }),
        "keyring" => run(&|| {
            let (kind, name) = (text("user")?, text("marcato-drill")?);
            const SESSION: i32 = -3;
            call!(libc::SYS_add_key, kind.as_ptr(), name.as_ptr(), kind.as_ptr(), 4, SESSION).map(|_| "a key".into())
        }),
        "io-uring" => run(&|| {
            let mut parameters = [0_u8; 120];
            call!(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()).map(|_| "a ring".into())
        }),
        "bpf" => run(&|| {
            // BPF_MAP_CREATE of an array with one element.
            let attributes = [2_u32, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            call!(libc::SYS_bpf, 0, attributes.as_ptr(), 64).map(|_| "a map".into())
        }),
        "perf" => run(&|| {
            // A software clock of this process.
            let mut attributes = [0_u32; 32];
            attributes[0] = 1;
            attributes[1] = 128;
            call!(libc::SYS_perf_event_open, attributes.as_ptr(), 0, -1, -1, 0).map(|_| "a counter".into())
        }),
        "userfault" => run(&|| call!(libc::SYS_userfaultfd, 1).map(|_| "faults of its own".into())),
        "shared-memory" => {
            run(&|| call!(libc::SYS_shmget, 0x6d61, 4096, libc::IPC_CREAT | 0o600).map(|_| "a segment".into()))
        }
        "type-into-terminal" => run(&|| {
            let letter = b"x";
            call!(libc::SYS_ioctl, 1, libc::TIOCSTI, letter.as_ptr()).map(|_| "typed".into())
        }),
        "dumpable" => {
            run(&|| call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0).map(|_| "open to look into".into()))
        }
        "socket-filter" => run(&|| {
            let (pair, _other) = UnixStream::pair()?;
            // One instruction: accept everything.
            let program = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
            let filter = libc::sock_fprog { len: 1, filter: (&raw const program).cast_mut() };
            let fd = std::os::fd::AsRawFd::as_raw_fd(&pair);
            let (level, name) = (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER);
            call!(libc::SYS_setsockopt, fd, level, name, &raw const filter, size_of_val(&filter))
                .map(|_| "code in the kernel".into())
        }),
        #[cfg(target_arch = "x86_64")]
        "old-calls" => run(&|| {
            let pid: i64;
            // SAFETY: getpid of the 32-bit table (20), which takes nothing and changes rax alone.
            unsafe {
                std::arch::asm!("int 0x80", inlateout("rax") 20_i64 => pid, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
            }
            Ok(format!("process {pid} by the 32-bit table"))
        }),
        _ => None,
    }
}

fn memory(attack: &str, at: &At<'_>) -> Option<Gained> {
    let run = |f: &dyn Fn() -> Gained| Some(f());
    let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
    let map = |protection: i32, flags: i32, fd: i32| {
        call!(libc::SYS_mmap, std::ptr::null::<u8>(), 4096_usize, protection, flags, fd, 0_usize)
    };
    let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    match attack {
        "map-writable-code" => {
            run(&|| map(read | write | execute, private, -1).map(|_| "memory to write and run".into()))
        }
        "make-data-code" => run(&|| {
            let page = map(read | write, private, -1)?;
            call!(libc::SYS_mprotect, page, 4096, read | write | execute).map(|_| "memory to write and run".into())
        }),
        #[cfg(target_arch = "x86_64")]
        "write-then-run" => run(&|| {
            let page = map(read | write, private, -1)?;
            let code: *mut u8 = std::ptr::with_exposed_provenance_mut(usize::try_from(page).map_err(io::Error::other)?);
            // mov eax, 42; ret
            let instructions = [0xb8, 42, 0, 0, 0, 0xc3];
            // SAFETY: the page is this function's own, and long enough.
            unsafe { std::ptr::copy_nonoverlapping(instructions.as_ptr(), code, instructions.len()) };
            call!(libc::SYS_mprotect, page, 4096, read | execute)?;
            // SAFETY: the instructions above keep to the calling convention.
            let answer = unsafe { std::mem::transmute::<*mut u8, extern "C" fn() -> i32>(code)() };
            Ok(format!("own code answered {answer}"))
        }),
        "memory-file" => run(&|| {
            let name = text("drill")?;
            call!(libc::SYS_memfd_create, name.as_ptr(), 0).map(|_| "a file without a name".into())
        }),
        "exec-memory-file" => run(&|| {
            let name = text("drill")?;
            let fd = call!(libc::SYS_memfd_create, name.as_ptr(), 0)?;
            // SAFETY: new, and owned by nobody.
            let mut file = unsafe { File::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) };
            file.write_all(b"#!/bin/true\n")?;
            let (empty, arguments) = (text("")?, [name.as_ptr(), std::ptr::null()]);
            let environment = [std::ptr::null::<libc::c_char>()];
            call!(libc::SYS_execveat, fd, empty.as_ptr(), arguments.as_ptr(), environment.as_ptr(), libc::AT_EMPTY_PATH)
                .map(|_| String::new())
        }),
        "write-own-code" => run(&|| {
            // Through the file of its memory the kernel writes whatever the page's protection says.
            let code = tell as *const () as u64;
            let file = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
            let mut byte = [0];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, code)?;
            std::os::unix::fs::FileExt::write_all_at(&file, &byte, code)?;
            gained("wrote where code is")
        }),
        "share-code-file" => run(&|| {
            use std::os::fd::AsRawFd;
            let file = OpenOptions::new().read(true).write(true).open(at(0)?)?;
            map(read | write, libc::MAP_SHARED, file.as_raw_fd()).map(|_| "the code file, writable".into())
        }),
        "raise-limit" => run(&|| {
            let limit = libc::rlimit { rlim_cur: 1 << 20, rlim_max: 1 << 20 };
            let none = std::ptr::null::<u8>();
            call!(libc::SYS_prlimit64, 0, libc::RLIMIT_CORE, &raw const limit, none).map(|_| "core dumps".into())
        }),
        _ => None,
    }
}
