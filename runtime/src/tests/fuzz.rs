//! Fuzz targets: the bytes of a component on their way through the compiler, and the files of the cache.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use marcato_api::{Digest, files};
use marcato_fuzz::{Edits, Input, target};
use wasmparser::Validator;

use super::guests;
use crate::artifact::ArtifactCache;
use crate::compile::compile_bytes;
use crate::error::{CompileError, LoadError};
use crate::files::Files;
use crate::module::component_of;

const WORDS: &[&[u8]] = &[
    b"\0asm\x01\0\0\0",
    b"\0asm\x0d\0\x01\0",
    b"wasi_snapshot_preview1",
    b"memory",
    b"_start",
    b"@0.3.",
    b"wasi:http/handler@0.3.0",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x08",
    b"\x0b",
    b"\x0a",
    b"\x05",
];

const COMMAND: &str = r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
    (data (i32.const 8) "Content-Type: text/plain\n\n") (table 1 funcref) (global (mut i32) (i32.const 0))
    (func (export "_start") (call $exit (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 4)))))"#;

fn text(wat: &str) -> Vec<u8> {
    wat::parse_str(wat).expect("text")
}

/// Fields of a module, each right by itself.
const FIELDS: &[&str] = &[
    r#"(import "wasi_snapshot_preview1" "random_get" (func (param i32 i32) (result i32)))"#,
    r#"(import "wasi_snapshot_preview1" "proc_exit" (func (param i32)))"#,
    r#"(import "wasi_snapshot_preview1" "fd_write" (func (param i64) (result i64)))"#,
    r#"(import "env" "system" (func))"#,
    r#"(import "env" "memory" (memory 1))"#,
    r#"(memory 1)"#,
    r#"(memory (export "memory") 1 65536)"#,
    r#"(memory i64 1)"#,
    r#"(table 10 funcref)"#,
    r#"(table (export "t") 100000 externref)"#,
    r#"(global (mut i64) (i64.const -1))"#,
    r#"(global (export "g") v128 (v128.const i64x2 1 2))"#,
    r#"(data (i32.const 65535) "\00\ff")"#,
    r#"(data "passive")"#,
    r#"(elem (i32.const 0) func 0)"#,
    r#"(type (func (param i32 i64 f32 f64) (result f64 f32)))"#,
    r#"(type (struct (field (mut i32)) (field anyref)))"#,
    r#"(rec (type (array (mut i8))) (type (sub (struct))))"#,
    r#"(tag (param i32))"#,
    r#"(start 0)"#,
    r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (unreachable))"#,
    r#"(func (export "_initialize"))"#,
    r#"(export "x" (func 0))"#,
    r#"(@custom "name" "\01\02\03")"#,
    r#"(@custom "component-type:x" "\00")"#,
];

/// Statements of a function, each right by itself.
const STATEMENTS: &[&str] = &[
    "(drop (i32.div_s (i32.const -2147483648) (i32.const -1)))",
    "(i32.store offset=4294967295 (i32.const -1) (i32.load8_s (i32.const 7)))",
    "(drop (memory.grow (i32.const 65535)))",
    "(memory.fill (i32.const 0) (i32.const 1) (i32.const 70000))",
    "(drop (i32.trunc_sat_f64_u (f64.sqrt (f64.const nan:0x8000000000001))))",
    "(drop (i8x16.swizzle (v128.const i64x2 1 2) (i8x16.splat (i32.const 200))))",
    "(block (br_if 0 (i32.const 1)) (br 0))",
    "(loop (br_if 0 (i32.const 0)))",
    "(block (block (block (br_table 0 1 2 (i32.const 9)))))",
    "(if (i32.eqz (local.get 0)) (then (return)) (else (nop)))",
    "(local.set 0 (i32.popcnt (i32.rotl (local.get 0) (i32.const 33))))",
    "(local.set 1 (select (i64.const 1) (local.get 1) (i64.eqz (local.get 1))))",
    "(drop (i64.atomic.rmw.add (i32.const 8) (i64.const 1)))",
    "(call 0)",
    "(unreachable)",
    "(drop (ref.is_null (ref.null func)))",
    "(drop (i64.extend16_s (i64.reinterpret_f64 (f64.nearest (f64.const 0.5)))))",
    "(return_call 0)",
];

/// A module of any shape that is a command of WASI 0.1 by its exports. Most of them are valid.
fn command(shape: &[u8]) -> Option<Vec<u8>> {
    let (fields, statements) = shape.split_at(shape.len() / 3);
    let pick = |from: &[&'static str], numbers: &[u8], most: usize| -> Vec<&'static str> {
        numbers.iter().take(most).map(|n| from[*n as usize % from.len()]).collect()
    };
    // Imports come before all else.
    let (imports, rest): (Vec<_>, Vec<_>) = pick(FIELDS, fields, 4).into_iter().partition(|f| f.starts_with("(import"));
    let body = pick(STATEMENTS, statements, 24).concat();
    let start = format!(r#"(memory (export "memory") 1) (func (export "_start") (local i32 i64) {body})"#);
    wat::parse_str(format!("(module {} {start} {})", imports.concat(), rest.concat())).ok()
}

fn is_valid(bytes: &[u8]) -> bool {
    Validator::new().validate_all(bytes).is_ok()
}

/// One line for whoever pushed it.
#[track_caller]
fn check_reason(why: &str) {
    assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
}

/// A module is wrapped or refused, the encoder never panics, and what it makes is a valid component; it is only ever
/// given what is valid.
#[test]
fn fuzz_module() {
    let good = [text(COMMAND), text(r#"(module (memory (export "memory") 1) (func (export "_start")))"#)];
    let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
    let wrapped = Cell::new(0);
    target!(600, |input: &(bool, Vec<u8>, Input)| {
        let (any_shape, shape, input) = input;
        let bytes = match any_shape.then(|| command(shape)).flatten() {
            Some(module) => input.bytes(&[&module], WORDS),
            None => input.bytes(&good, WORDS),
        };
        match component_of(&bytes) {
            Ok(component) if bytes.get(6) == Some(&0) => {
                assert!(is_valid(&bytes) && is_valid(&component));
                wrapped.set(wrapped.get() + 1);
            }
            Ok(component) => assert_eq!(*component, *bytes, "a component stays as it is"),
            Err(why) => check_reason(&why),
        }
    });
    assert!(wrapped.get() > 0, "none got to the encoder");
}

/// What compiles is valid, and links or not, for a reason; the same bytes give the same code. Nothing panics, in the
/// compiler's own process, where it would be met with a refusal, too.
#[test]
fn fuzz_compile() {
    let good = [text(COMMAND), guests::hello(), guests::once(), guests::handles(), guests::alien()];
    let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
    let compiled = Cell::new(0);
    target!(40, |input: &(bool, Vec<u8>, Input)| {
        let (any_shape, shape, input) = input;
        let bytes = match any_shape.then(|| command(shape)).flatten() {
            Some(module) => module,
            None => input.bytes(&good, WORDS),
        };
        match compile_bytes(&bytes) {
            Ok((dialect, code)) => {
                assert!(is_valid(&bytes));
                assert!(compile_bytes(&bytes).is_ok_and(|(_, again)| again == code), "other code for the same bytes");
                if let Err(error) = crate::link::check(dialect, &code) {
                    check_reason(&error.to_string());
                }
                compiled.set(compiled.get() + 1);
            }
            Err(CompileError::Rejected(why)) => check_reason(&why),
            Err(other) => panic!("{other}"),
        }
    });
    assert!(compiled.get() > 0, "none compiled");
}

/// All files below a folder.
fn listed(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            let meta = fs::symlink_metadata(&path).expect("there");
            assert!(!meta.is_symlink(), "{}", path.display());
            if meta.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).expect("below").to_str().expect("UTF-8").to_owned();
                found.insert(name, fs::read(&path).expect("readable"));
            }
        }
    }
    found
}

/// Files that came along land where they belong, all or none, with the bytes that they had; nothing lands elsewhere.
#[test]
fn fuzz_files() {
    let packed = |paths: &[&str]| {
        let entries = paths.iter().map(|p| ((*p).to_owned(), p.as_bytes().to_vec())).collect();
        files::append(b"\0asm\x0d\0\x01\0".to_vec(), &files::pack(&entries).expect("fits"))
    };
    let good = [packed(&["index.html", "a/b/c.txt"]), packed(&["a"]), packed(&[])];
    let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
    let words: &[&[u8]] = &[b"../", b"/", b"..", b"marcato.files", b"\0", b"a/", b"ustar\x0000"];
    let above = tempfile::tempdir().expect("a folder");
    let dir = above.path().join("cache");
    target!(300, |input: &Input| {
        let bytes = input.bytes(&good, words);
        let digest = Digest::of(&bytes);
        fs::create_dir(&dir).expect("a folder");
        let taken = Files::extract(&dir, &digest, &bytes);
        let archive = files::section(&bytes).and_then(|found| found.map(files::unpack).transpose());
        let here = listed(&dir);
        match (taken, archive) {
            (Ok(()), Ok(found)) => {
                let prefix = format!("{}.files/", digest.hex());
                let expected = found.unwrap_or_default().into_iter().map(|(p, b)| (prefix.clone() + &p, b.to_vec()));
                assert_eq!(here, expected.collect());
            }
            (Err(CompileError::Rejected(why)), Err(_)) => {
                check_reason(&why);
                assert!(here.is_empty(), "{here:?}");
            }
            (taken, archive) => panic!("{taken:?}, and read as {archive:?}"),
        }
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(fs::read_dir(above.path()).expect("a folder").count(), 0, "nothing landed elsewhere");
    });
}

/// Two pieces of code in a cache, as they were signed, with the files that they lie in.
struct Signed {
    dir: tempfile::TempDir,
    entries: [(Digest, PathBuf, Vec<u8>); 2],
}

const CODE_KEY: &str = "0123abcd";

impl Signed {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = ArtifactCache::open(dir.path(), CODE_KEY).expect("a cache");
        let entries = [b"the machine code of one".as_slice(), &[0x90; 3000]].map(|code| {
            let digest = Digest::of(code);
            let scratch = cache.scratch().expect("a file");
            fs::write(scratch.path(), code).expect("writable");
            cache.commit(&digest, scratch).expect("signed");
            let path = cache.verified(&digest).expect("right");
            let bytes = fs::read(&path).expect("readable");
            (digest, path, bytes)
        });
        Self { dir, entries }
    }

    /// Another file in its place: never the same one written over, whose time might be the same.
    fn replace(&self, path: &Path, bytes: &[u8]) {
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, bytes).expect("writable");
        fs::rename(&fresh, path).expect("renamed");
    }
}

/// Whatever becomes of the files with code and of the notes beside them: what is loaded has every byte that was
/// signed, under the name that it was signed for. What is refused is gone. A new start knows no more than the files.
#[test]
fn fuzz_cache() {
    let signed = Signed::new();
    let key = fs::read(signed.dir.path().join("key")).expect("a key");
    // Notes that are right, of a file that was there.
    let notes = signed.entries.each_ref().map(|(_, path, _)| fs::read(path.with_extension("seen")).expect("a note"));
    // So that no other file gets their number.
    let kept: Vec<_> = signed.entries.iter().map(|(_, path, _)| fs::File::open(path).expect("readable")).collect();
    let good: Vec<&[u8]> =
        signed.entries.iter().map(|(_, _, bytes)| bytes.as_slice()).chain([key.as_slice()]).collect();
    let words: &[&[u8]] = &[b"MARCATO1", &good[0][good[0].len() - 40..], &good[1][good[1].len() - 32..], b"\0"];
    target!(400, |input: &(Input, Option<Input>, bool, bool)| {
        let (code, note, same_process, other_version) = input;
        let (digest, path, original) = &signed.entries[0];
        let bytes = code.bytes(&good, words);
        let cache = ArtifactCache::open(signed.dir.path(), CODE_KEY).expect("a cache");
        if *same_process {
            signed.replace(path, original);
            cache.verified(digest).expect("right");
        }
        signed.replace(path, &bytes);
        if let Some(note) = note {
            let bytes = note.bytes(&[&notes[0], &notes[1], &key], words);
            signed.replace(&path.with_extension("seen"), &bytes);
        }
        check_load(&cache, digest, path, original, &bytes);
        if *other_version {
            // Code of another version of the compiler, under the name that this one would have.
            let other = ArtifactCache::open(signed.dir.path(), "4567cdef").expect("a cache");
            let other_path = signed.dir.path().join(format!("{}-4567cdef.cwasm", digest.hex()));
            signed.replace(&other_path, &bytes);
            assert!(matches!(other.verified(digest), Err(LoadError::Tampered { .. })));
        }
    });
    drop(kept);
}

#[track_caller]
fn check_load(cache: &ArtifactCache, digest: &Digest, path: &Path, original: &[u8], bytes: &[u8]) {
    match cache.verified(digest) {
        Ok(found) => {
            assert_eq!(found, path);
            assert!(bytes == original, "changed code was loaded");
            assert_eq!(fs::read(path).expect("readable"), original);
        }
        Err(LoadError::Tampered { .. }) => {
            assert!(bytes != original, "right code was refused");
            assert!(!cache.contains(digest), "a refused file is removed");
            assert!(matches!(cache.verified(digest), Err(LoadError::NotCompiled(_))));
        }
        Err(other) => panic!("{other}"),
    }
}

/// A note alone, of this very file: only the right one saves reading the file again, and a wrong one changes nothing.
/// Any key that is not the one that signed refuses all that there is.
#[test]
fn fuzz_cache_key() {
    let signed = Signed::new();
    let key_file = signed.dir.path().join("key");
    let key = fs::read(&key_file).expect("a key");
    target!(200, |edits: &Edits| {
        let changed = edits.apply(&key, &[b"\0"]);
        for (_, path, original) in &signed.entries {
            signed.replace(path, original);
        }
        signed.replace(&key_file, &changed);
        let cache = ArtifactCache::open(signed.dir.path(), CODE_KEY).expect("a cache");
        let kept = fs::read(&key_file).expect("a key");
        assert_eq!(kept == changed, changed.len() == key.len(), "a key that is none is made anew");
        for (digest, path, original) in &signed.entries {
            check_under_key(&cache, digest, path, original, kept == key);
        }
        signed.replace(&key_file, &key);
    });
}

#[track_caller]
fn check_under_key(cache: &ArtifactCache, digest: &Digest, path: &Path, original: &[u8], is_own: bool) {
    match cache.verified(digest) {
        Ok(found) => assert!(is_own && found == path && fs::read(path).expect("readable") == original),
        Err(LoadError::Tampered { .. }) => assert!(!is_own, "right code was refused"),
        Err(other) => panic!("{other}"),
    }
}
