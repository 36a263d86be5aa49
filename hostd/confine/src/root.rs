//! A root of its own: an empty file system with the plan's folders bound into it, and nothing of the machine's.

use std::fs::{self, DirBuilder, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use marcato_api::{ConfinementReport, Measure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, pivot_root};

use crate::error::ConfineError;
use crate::plan::Plan;
use crate::sys;

/// Where the new root is put together; each machine has one of these, and nobody but this process sees it.
const PLACES: [&str; 6] = ["/tmp", "/run", "/var", "/mnt", "/dev/shm", "/usr"];

const NOTHING: Option<&str> = None;

/// Refuses paths that would mean something else in another root.
pub(crate) fn check(plan: &Plan) -> Result<(), ConfineError> {
    for path in plan.read_only.iter().chain(&plan.read_write) {
        let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
        if !path.is_absolute() || !path.components().all(plain) {
            return Err(ConfineError::BadPath(path.clone()));
        }
    }
    Ok(())
}

/// A folder or file of the plan, opened while it can be seen.
struct Bound {
    path: PathBuf,
    fd: OwnedFd,
    is_folder: bool,
    writable: bool,
}

/// Moves into a root of its own. Where that is refused, the process stays in the machine's, and Landlock alone
/// keeps files from it.
pub(crate) fn change(plan: &Plan, report: &mut ConfinementReport) -> Result<(), ConfineError> {
    if let Err(e) = unshare(CloneFlags::CLONE_NEWNS) {
        report.not_had(Measure::MountNamespace, e.desc());
        return Ok(());
    }
    // A bind mount's source must be of this namespace, so nothing may be opened earlier.
    let mut bound = Vec::new();
    for (path, writable) in plan.read_only.iter().map(|p| (p, false)).chain(plan.read_write.iter().map(|p| (p, true))) {
        bound.push(open_bound(path, writable)?);
    }
    match build(&bound, report.has(Measure::PidNamespace)) {
        Ok(detail) => report.had(Measure::MountNamespace, detail),
        Err((step, e)) => report.not_had(Measure::MountNamespace, format!("{step}: {}", e.desc())),
    }
    Ok(())
}

fn open_bound(path: &Path, writable: bool) -> Result<Bound, ConfineError> {
    let failed = |source| ConfineError::Open { path: path.to_owned(), source };
    let fd = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).map_err(|e| failed(e.into()))?;
    let is_folder = fs::metadata(path).map_err(failed)?.is_dir();
    Ok(Bound { path: path.to_owned(), fd, is_folder, writable })
}

type Step<T> = Result<T, (&'static str, Errno)>;

fn at(step: &'static str) -> impl Fn(Errno) -> (&'static str, Errno) {
    move |e| (step, e)
}

fn io_at(step: &'static str) -> impl Fn(std::io::Error) -> (&'static str, Errno) {
    move |e| (step, Errno::from_raw(e.raw_os_error().unwrap_or(nix::libc::EIO)))
}

fn build(bound: &[Bound], own_processes: bool) -> Step<&'static str> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Nothing that happens here shows elsewhere.
    mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NOTHING).map_err(at("make mounts private"))?;
    let place = PLACES.iter().map(Path::new).find(|p| p.is_dir()).ok_or(("find a place", Errno::ENOENT))?;
    mount(Some("marcato"), place, Some("tmpfs"), quiet, Some("mode=755,size=1m,nr_inodes=4096"))
        .map_err(at("mount an empty root"))?;
    // Outer folders first: a folder within another is bound over what the outer one shows.
    let mut order: Vec<_> = bound.iter().collect();
    order.sort_by_key(|b| b.path.components().count());
    for b in order {
        bind(place, b)?;
    }
    let detail = processes(place, own_processes);
    chdir(place).map_err(at("enter the new root"))?;
    // The old root is put over the new one and taken off again (pivot_root(2), "pivot_root(".", ".")").
    pivot_root(".", ".").map_err(at("change the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(at("let the old root go"))?;
    chdir("/").map_err(at("enter the root"))?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | quiet;
    mount(NOTHING, "/", NOTHING, read_only, NOTHING).map_err(at("make the root read-only"))?;
    Ok(detail)
}

fn bind(place: &Path, b: &Bound) -> Step<()> {
    let target = place.join(b.path.strip_prefix("/").unwrap_or(&b.path));
    let parents = if b.is_folder { Some(target.as_path()) } else { target.parent() };
    if let Some(parents) = parents.filter(|p| !p.exists()) {
        DirBuilder::new().recursive(true).mode(0o755).create(parents).map_err(io_at("make a folder"))?;
    }
    if !b.is_folder && !target.exists() {
        File::create(&target).map_err(io_at("make a file"))?;
    }
    let source = sys::by_descriptor(&b.fd);
    mount(Some(source.as_str()), &target, NOTHING, MsFlags::MS_BIND, NOTHING).map_err(at("bind a folder"))?;
    let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    // No `MS_NOEXEC`: code is mapped from here. Flags that the machine set must stay set in a user namespace.
    let set = statvfs(&target).map_err(at("look at a mount"))?.flags();
    for (had, flag) in [
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if set.contains(had) {
            flags |= flag;
        }
    }
    if !b.writable {
        flags |= MsFlags::MS_RDONLY;
    }
    mount(NOTHING, &target, NOTHING, flags, NOTHING).map_err(at("make a folder read-only"))
}

/// `/proc` with this process and nothing of the kernel: the pool scans its page map through it.
fn processes(place: &Path, own: bool) -> &'static str {
    if !own {
        return "without /proc";
    }
    let target = place.join("proc");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    let mounted = fs::create_dir(&target).is_ok()
        && mount(Some("proc"), &target, Some("proc"), flags, Some("subset=pid,hidepid=2")).is_ok();
    if mounted { "" } else { "without /proc" }
}
