//! WASI 0.1 modules: made into components as they are compiled, so that there is one way to run a guest.
//!
//! A module that exports `_start` (C, Go, Zig) is wrapped with wasmtime's own adapter from WASI 0.1 to 0.2 and becomes
//! a component that exports `wasi:cli/run`. The adapter's pages are set apart before ([`moved`]). Runs in the compiler
//! process, for its input is untrusted.

mod calls;
mod moved;

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::Validator;
use wit_component::ComponentEncoder;

/// The component that is compiled for these bytes. Errors: why there is none, for whoever pushed them.
pub(crate) fn component_of(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    // A component's header has layer 1 where a core module's has layer 0.
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', _, _, 1, 0]) => Ok(Cow::Borrowed(bytes)),
        Some([0, b'a', b's', b'm', ..]) => wrap(bytes).map(Cow::Owned),
        _ => Err("this is not WebAssembly".into()),
    }
}

fn wrap(module: &[u8]) -> Result<Vec<u8>, String> {
    // First: the encoder takes for granted that a module is valid, and panics where it is not.
    Validator::new()
        .validate_all(module)
        .map_err(|e| format!("this core module is not valid: {e}").replace('\n', " "))?;
    // All that have no allocator for the adapter, not only Go's: what the program does with its memory is not ours to
    // guess, and it costs a page.
    let moved = moved::move_up(module);
    let encoded = ComponentEncoder::default()
        .validate(true)
        .module(moved.as_deref().unwrap_or(module))
        .and_then(|e| e.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER))
        .and_then(|mut e| e.encode());
    encoded.map_err(|e| {
        format!(
            "this core module is no WASI 0.1 command (it exports _start and memory, and imports wasi_snapshot_preview1 \
             only): {e:#}"
        )
        .replace('\n', " ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_becomes_a_component_and_nothing_else_does() {
        let command =
            wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#).expect("text");
        let component = component_of(&command).expect("a component");
        assert_eq!(component[6], 1, "layer 1");
        assert!(matches!(component_of(&component), Ok(Cow::Borrowed(_))), "a component stays as it is");
        for text in [
            r#"(module)"#,
            r#"(module (memory (export "memory") 1))"#,
            r#"(module (import "env" "system" (func)) (memory (export "memory") 1) (func (export "_start")))"#,
            r#"(module (import "env" "memory" (memory 1)) (export "memory" (memory 0)) (func (export "_start")))"#,
            r#"(module (memory (export "memory") i64 1) (func (export "_start")))"#,
            r#"(module (memory (export "memory") 1 2 shared) (func (export "_start")))"#,
        ] {
            let why = component_of(&wat::parse_str(text).expect("text")).expect_err(text);
            assert!(why.contains("core module"), "{text}: {why}");
        }
        assert!(component_of(b"\x7fELF\0\0\0\0").is_err());
    }

    #[test]
    fn damaged_modules_are_refused_without_a_panic() {
        let good = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
                 (memory (export "memory") 1) (func (export "_start") (call $exit (i32.const 0))))"#,
        )
        .expect("text");
        component_of(&good).expect("fine");
        for at in 0..good.len() {
            drop(component_of(&good[..at]));
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                drop(component_of(&bytes));
            }
        }
    }
}
