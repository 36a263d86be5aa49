//! Fuzz target: what `push` makes of a file before it sends it.

use marcato_fuzz::{Input, target};
use wasmparser::Validator;

use super::*;

const WORDS: &[&[u8]] = &[
    b"\0asm",
    b"\0asm\x01\0\0\0",
    b"\0asm\x0d\0\x01\0",
    b"wasi:http/incoming-handler@0.2.6",
    b"wasi:http/handler@0.3.0",
    b"wasi:cli/run@0.2.0",
    b"wasi_snapshot_preview1",
    b"_start",
    b"\x1b[2J",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x08",
    b"\x0a",
    b"\x0b",
    b"\x04",
    b"\x01",
];

fn good() -> Vec<Vec<u8>> {
    [
        r#"(component (import "wasi:cli/environment@0.2.0" (instance)) (core module (func)) (component)
             (instance $i) (export "wasi:http/incoming-handler@0.2.6" (instance $i)))"#,
        r#"(component (import "wasi:keyvalue/store@0.2.0-draft" (instance)) (type (tuple u8 string))
             (instance $i) (export "wasi:http/handler@0.3.0" (instance $i)) (export "x" (instance $i)))"#,
        r#"(component (import "t" (type (sub resource))) (instance $i) (export "wasi:cli/run@0.2.0" (instance $i)))"#,
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))) (memory (export "memory") 1)
             (func (export "_start") (call 0 (i32.const 0))) (data (i32.const 8) "hello"))"#,
    ]
    .map(|text| wat::parse_str(text).unwrap())
    .into()
}

/// What is valid is never called damaged; what is taken imports nothing that is not granted; and no word of a file
/// reaches a terminal as anything but text.
#[test]
fn fuzz_push() {
    let good = good();
    let good: Vec<&[u8]> = good.iter().map(Vec::as_slice).collect();
    for bytes in &good {
        inspect(bytes, "x.wasm").unwrap();
    }
    target!(4000, |input: &Input| check(&input.bytes(&good, WORDS)));
}

#[track_caller]
fn check(bytes: &[u8]) {
    let found = inspect(bytes, "x.wasm");
    if Validator::new().validate_all(bytes).is_ok() {
        assert!(!matches!(found, Err(ComponentError::Damaged { .. } | ComponentError::NotWasm(_))), "{found:?}");
    }
    match found {
        Ok(inspected) => {
            assert!(bytes.starts_with(b"\0asm"));
            assert!(inspected.imports.iter().all(|i| grant_for(i).is_some()), "{inspected:?}");
            assert!(inspected.kind() != Kind::Module || !inspected.needs_bindings());
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.chars().all(|c| !c.is_control()), "{said:?}");
            assert!(said.len() < 8192, "{} bytes", said.len());
        }
    }
}
