//! The wasm32-wasip2 standard library, by the first of three ways that holds: the toolchain has it;
//! rustup fetches it; Debian's `rustc-web` and `rust-web-src` build it once into a sysroot of ours.
//!
//! The third way exists for machines that reach Debian's packages and not rustup's servers. Compiler
//! and sources must both come from Debian there: std of one release does not build with another.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::debian;
use crate::guests::clean;
use crate::run::{cargo, has_program, output, root, run};

/// The target that guests build for.
pub(crate) const TARGET: &str = "wasm32-wasip2";

/// What guests build with.
pub(crate) struct Toolchain {
    /// How it was had, for people.
    pub(crate) way: &'static str,
    /// A compiler in place of the toolchain's own.
    pub(crate) rustc: Option<PathBuf>,
}

/// Finds or makes a compiler for [`TARGET`]. Errors end with the command to run.
pub(crate) fn ensure() -> Result<Toolchain> {
    if toolchain_has_std()? {
        return Ok(Toolchain { way: "the toolchain has wasm32-wasip2", rustc: None });
    }
    if has_program("rustup") && has_program("timeout") {
        eprintln!("xtask: wasm32-wasip2 is missing: rustup target add {TARGET}");
        let added = Command::new("timeout").args(["120", "rustup", "target", "add", TARGET]).status();
        if added.is_ok_and(|s| s.success()) && toolchain_has_std()? {
            return Ok(Toolchain { way: "rustup added wasm32-wasip2", rustc: None });
        }
        eprintln!("xtask: rustup could not add it; trying Debian's packages");
    }
    let rustc = debian_sysroot().context(
        "no standard library for wasm32-wasip2. Run `rustup target add wasm32-wasip2`, or on Debian \
         `sudo apt-get install rustc-web rust-web-src wasi-libc`, then run this again",
    )?;
    Ok(Toolchain { way: "std for wasm32-wasip2 built from Debian's rust-web-src", rustc: Some(rustc) })
}

fn toolchain_has_std() -> Result<bool> {
    let dir = output(Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]))?;
    Ok(has_libstd(Path::new(dir.trim())))
}

fn has_libstd(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|entries| {
        entries.filter_map(Result::ok).any(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("libstd-") && name.ends_with(".rlib")
        })
    })
}

/// Builds std with Debian's compiler into `target/wasm-sysroot-VERSION`, unless it is there, and gives
/// a wrapper named rustc that uses it.
fn debian_sysroot() -> Result<PathBuf> {
    const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
    let sources = Path::new("/usr/share/rust-web-src");
    if !Path::new(DEBIAN_RUSTC).exists() || !debian_sources().is_some_and(|p| p.exists()) {
        debian::install("a Rust compiler with its library sources", &["rustc-web", "rust-web-src", "wasi-libc"])?;
    }
    let version = output(Command::new(DEBIAN_RUSTC).arg("-V"))?;
    let key: String =
        version.trim().chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let sysroot = root().join("target").join(format!("wasm-sysroot-{key}"));
    let wrapper = sysroot.join("bin/rustc");
    let libraries = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    if has_libstd(&libraries) && wrapper.exists() {
        return Ok(wrapper);
    }
    if debian_sources().is_none() {
        bail!("rust-web-src is installed, but {} is not there", sources.display());
    }
    eprintln!("xtask: building std for {TARGET} once (1 to 2 minutes) with {}", version.trim());
    let scratch = root().join("target/wasm-sysroot-build");
    fs::create_dir_all(scratch.join("src"))?;
    fs::write(
        scratch.join("Cargo.toml"),
        "[package]\nname = \"seed\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n[profile.release]\npanic = \"abort\"\n",
    )?;
    fs::write(scratch.join("src/lib.rs"), "")?;
    run(clean(&mut cargo())
        .current_dir(&scratch)
        .env("RUSTC", DEBIAN_RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        // Guests link with LTO, which needs the bitcode that cargo would leave out.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .args(["build", "--release", "-Zbuild-std=std,panic_abort", "--target", TARGET])
        .arg("--target-dir")
        .arg(scratch.join("target"))
        .stdin(Stdio::null()))?;
    fs::create_dir_all(&libraries)?;
    copy_matching(&scratch.join("target").join(TARGET).join("release/deps"), &libraries, |n| n.ends_with(".rlib"))?;
    install_c_start(&libraries)?;
    install_linkers(&sysroot)?;
    fs::create_dir_all(sysroot.join("bin"))?;
    let script = format!("#!/bin/sh\nexec {DEBIAN_RUSTC} --sysroot '{}' \"$@\"\n", sysroot.display());
    fs::write(&wrapper, script)?;
    make_executable(&wrapper)?;
    link_host_library(&sysroot)?;
    Ok(wrapper)
}

fn debian_sources() -> Option<PathBuf> {
    let sysroot = output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"])).ok()?;
    let path = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    path.exists().then_some(path)
}

/// The C start files and libc.a that std links: wasi-libc's, beside the rlibs.
fn install_c_start(libraries: &Path) -> Result<()> {
    let from = ["/usr/lib/wasm32-wasip2", "/usr/lib/wasm32-wasi"]
        .iter()
        .map(Path::new)
        .find(|p| p.join("libc.a").exists())
        .context("wasi-libc is not installed: sudo apt-get install wasi-libc")?;
    let contained = libraries.join("self-contained");
    fs::create_dir_all(&contained)?;
    copy_matching(from, &contained, |n| n.starts_with("crt1") && n.ends_with(".o") || n == "libc.a")
}

/// `wasm-component-ld` and `rust-lld` of the running toolchain.
fn install_linkers(sysroot: &Path) -> Result<()> {
    let own = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    let host = host_triple()?;
    let from = Path::new(own.trim()).join("lib/rustlib").join(&host).join("bin");
    let to = sysroot.join("lib/rustlib").join(&host).join("bin");
    fs::create_dir_all(&to)?;
    copy_matching(&from, &to, |n| n == "wasm-component-ld" || n == "rust-lld")
        .with_context(|| format!("no wasm-component-ld in {}: cargo install wasm-component-ld", from.display()))
}

/// Build scripts and macros of guests need the host's std too: point at Debian's.
fn link_host_library(sysroot: &Path) -> Result<()> {
    let debian = output(Command::new("/usr/bin/rustc").args(["--print", "sysroot"]))?;
    let host = host_triple()?;
    let link = sysroot.join("lib/rustlib").join(&host).join("lib");
    if !link.exists() {
        std::os::unix::fs::symlink(Path::new(debian.trim()).join("lib/rustlib").join(&host).join("lib"), &link)?;
    }
    Ok(())
}

fn host_triple() -> Result<String> {
    let verbose = output(Command::new("rustc").arg("-vV"))?;
    let line = verbose.lines().find_map(|l| l.strip_prefix("host: "));
    Ok(line.context("`rustc -vV` names no host")?.to_owned())
}

fn copy_matching(from: &Path, to: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let mut copied = 0;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
            copied += 1;
        }
    }
    if copied == 0 { bail!("nothing to copy in {}", from.display()) } else { Ok(()) }
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
