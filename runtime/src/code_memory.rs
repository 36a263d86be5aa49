//! Code becomes executable by being mapped from its file, never by changing what memory may do: so a confined process
//! can be forbidden the latter (`Plan::mapped_code` of `hostd/confine`), and nothing that it writes is ever run.
//!
//! wasmtime maps a compiled file whole, readable, and then asks for its text to be made executable ([`FromFile`]);
//! that part is mapped over, from the same file. Code with relocations, or that comes from no file, is made
//! executable as wasmtime itself does it; this platform's has none. Intent flow, once per load.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::libc;
use wasmtime::CustomCodeMemory;

/// Where the text of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Text {
    offset: u64,
    length: u64,
}

thread_local! {
    /// The file that this thread loads now. wasmtime asks in the middle of that, on the same thread.
    static LOADING: RefCell<Option<(File, Text)>> = const { RefCell::new(None) };
}

/// Runs `load`, which maps the file at `path` and nothing else.
pub(crate) fn loading<T>(path: &Path, load: impl FnOnce() -> T) -> io::Result<T> {
    /// Also when `load` panics.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            LOADING.take();
        }
    }
    let file = File::open(path)?;
    let opened = file.metadata()?;
    let text = text_of(&file)?;
    LOADING.set(text.map(|text| (file, text)));
    let _forget = Forget;
    let loaded = load();
    let now = path.metadata()?;
    if (now.dev(), now.ino()) == (opened.dev(), opened.ino()) {
        Ok(loaded)
    } else {
        Err(io::Error::other("the code's file was replaced while it was loaded"))
    }
}

/// The text section of an ELF file (System V ABI, chapter 4), of 64 bits and little-endian as wasmtime's are. `None`:
/// another kind of file, more than one text, or relocations, with which memory is not what the file has.
fn text_of(file: &File) -> io::Result<Option<Text>> {
    const RELOCATIONS: [u64; 2] = [4, 9];
    const EXECUTABLE: u64 = 4;
    let mut header = [0; 64];
    if file.read_at(&mut header, 0)? < header.len() || header[..6] != *b"\x7fELF\x02\x01" {
        return Ok(None);
    }
    let (start, size, count) = (number(&header, 0x28, 8), number(&header, 0x3a, 2), number(&header, 0x3c, 2));
    let mut found = None;
    for section in 0..count {
        let mut entry = [0; 64];
        // Beyond what an offset can be there is nothing, either.
        let at = section.checked_mul(size).and_then(|n| n.checked_add(start)).filter(|at| i64::try_from(*at).is_ok());
        let Some(at) = at else { return Ok(None) };
        if file.read_at(&mut entry, at)? < entry.len() {
            return Ok(None);
        }
        let (kind, flags) = (number(&entry, 4, 4), number(&entry, 8, 8));
        let text = Text { offset: number(&entry, 0x18, 8), length: number(&entry, 0x20, 8) };
        if RELOCATIONS.contains(&kind) && text.length > 0 {
            return Ok(None);
        }
        if flags & EXECUTABLE != 0 && found.replace(text).is_some() {
            return Ok(None);
        }
    }
    Ok(found)
}

fn number(bytes: &[u8; 64], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Makes the text of what is being loaded executable.
#[derive(Debug)]
pub(crate) struct FromFile;

const PAGE: usize = 4096;

impl CustomCodeMemory for FromFile {
    fn required_alignment(&self) -> usize {
        PAGE
    }

    fn publish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        let wanted = u64::try_from(length)?;
        let mapped = LOADING.with_borrow(|loading| match loading {
            Some((file, text)) if text.length == wanted && text.offset.is_multiple_of(PAGE as u64) => {
                Some(map_text(start, length, file, text.offset))
            }
            _ => None,
        });
        Ok(mapped.unwrap_or_else(|| protect(start, length, libc::PROT_READ | libc::PROT_EXEC))?)
    }

    fn unpublish_executable(&self, start: *const u8, length: usize) -> wasmtime::Result<()> {
        Ok(protect(start, length, libc::PROT_READ | libc::PROT_WRITE)?)
    }
}

#[allow(unsafe_code, reason = "mmap(2) over memory that wasmtime hands over for this; see SAFETY")]
fn map_text(start: *const u8, length: usize, file: &File, offset: u64) -> io::Result<()> {
    let offset = offset.try_into().map_err(io::Error::other)?;
    let (access, fixed) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_FIXED);
    // SAFETY: wasmtime owns these pages, has them mapped from this very part of this very file, and nobody runs or
    // writes them yet; they keep their content and become executable.
    let at = unsafe { libc::mmap(start.cast_mut().cast(), length, access, fixed, file.as_raw_fd(), offset) };
    if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[allow(unsafe_code, reason = "mprotect(2) of memory that wasmtime hands over for this; see SAFETY")]
fn protect(start: *const u8, length: usize, access: libc::c_int) -> io::Result<()> {
    // SAFETY: wasmtime owns these pages and asks for this change of them alone.
    let done = unsafe { libc::mprotect(start.cast_mut().cast(), length, access) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use wasmtime::Engine;
    use wasmtime::component::Component;

    use super::*;
    use crate::engine::{Dialect, code_config};

    fn compiled() -> (Engine, tempfile::NamedTempFile) {
        let mut config = code_config(Dialect::Plain);
        config.with_custom_code_memory(Some(std::sync::Arc::new(FromFile)));
        let engine = Engine::new(&config).unwrap();
        let text = r#"(component (core module (func (export "f"))) (core instance (instantiate 0)))"#;
        let code = engine.precompile_component(&wat::parse_str(text).unwrap()).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&code).unwrap();
        (engine, file)
    }

    /// Executable mappings of the file, as the kernel lists them.
    fn executable(path: &Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let wanted = path.to_str().unwrap();
        maps.lines().filter(|l| l.ends_with(wanted) && l.contains(" r-xp ")).count()
    }

    #[test]
    fn text_is_mapped_from_its_file() {
        let (engine, file) = compiled();
        let text = text_of(file.as_file()).unwrap().expect("one text, without relocations");
        assert!(text.length > 0 && text.offset.is_multiple_of(PAGE as u64), "{text:?}");
        // SAFETY: just compiled by this engine.
        #[allow(unsafe_code, reason = "the only way to load code that was compiled ahead; see SAFETY")]
        let load = || unsafe { Component::deserialize_file(&engine, file.path()) };
        let component = loading(file.path(), load).unwrap().unwrap();
        assert_eq!(executable(file.path()), 1);
        assert!(LOADING.take().is_none(), "forgotten when it is done");
        drop(component);
        assert_eq!(executable(file.path()), 0);
    }

    #[test]
    fn files_that_are_not_code_have_no_text() {
        let mut elf = vec![0_u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let mut endless = elf.clone();
        endless[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        endless[0x3a..0x3e].copy_from_slice(&[0xff; 4]);
        for bytes in [&b""[..], b"\x7fELF", &[0xff; 200], &elf, &endless] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            // A header may be right and name nothing.
            assert_eq!(text_of(&file).unwrap(), None, "{bytes:?}");
        }
    }
}
