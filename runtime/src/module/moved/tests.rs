//! What is moved does the same, down to its traps; what cannot be moved stays as it is.

use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER;
use wasmparser::{ExternalKind, Validator};
use wasmtime::{Caller, Engine, Instance, Linker, Memory, Store, Val};

use super::super::calls::CALLS;
use super::*;

fn parsed(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

#[test]
fn every_function_of_the_adapter_is_known_with_its_type() {
    let types = Validator::new().validate_all(WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER).expect("the adapter");
    let types = types.as_ref();
    let mut seen = 0;
    for payload in Parser::new(0).parse_all(WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER) {
        let Payload::ExportSection(section) = payload.expect("the adapter") else { continue };
        for export in section.into_iter().map(Result::unwrap).filter(|e| e.kind == ExternalKind::Func) {
            // Its exports by the component model, and what is there for itself.
            let own = export.name.contains(['#', ':']) || export.name.contains("cabi_");
            if own || ["adapter_", "reset_adapter"].iter().any(|p| export.name.starts_with(p)) {
                continue;
            }
            let ty = types[types.core_function_at(export.index)].unwrap_func();
            assert!(Call::of(export.name, ty).is_some(), "{} {ty}", export.name);
            seen += 1;
        }
    }
    assert_eq!(seen, CALLS.len());
}

/// The `wasi_snapshot_preview1` of these tests: it reads and writes the memory that it finds, wherever the program lies.
fn linker(engine: &Engine) -> Linker<Vec<u8>> {
    fn memory(caller: &mut Caller<'_, Vec<u8>>) -> Memory {
        caller.get_export("memory").and_then(|m| m.into_memory()).expect("a memory")
    }
    fn word(caller: &mut Caller<'_, Vec<u8>>, at: u32) -> wasmtime::Result<u32> {
        let mut bytes = [0; 4];
        memory(caller).read(&caller, at as usize, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
    fn put(caller: &mut Caller<'_, Vec<u8>>, at: u32, bytes: &[u8]) -> wasmtime::Result<()> {
        Ok(memory(caller).write(caller, at as usize, bytes)?)
    }
    let mut linker = Linker::new(engine);
    let module = ADAPTER_NAME;
    linker
        .func_wrap(module, "fd_write", |mut cx: Caller<'_, Vec<u8>>, _: u32, list: u32, length: u32, written: u32| {
            let mut count = 0;
            for n in 0..length {
                let (at, size) = (word(&mut cx, list + 8 * n)?, word(&mut cx, list + 8 * n + 4)?);
                let mut bytes = vec![0; size as usize];
                memory(&mut cx).read(&cx, at as usize, &mut bytes)?;
                cx.data_mut().extend(bytes);
                count += size;
            }
            put(&mut cx, written, &count.to_le_bytes())?;
            wasmtime::Result::Ok(0_u32)
        })
        .expect("linked");
    linker
        .func_wrap(module, "environ_sizes_get", |mut cx: Caller<'_, Vec<u8>>, count: u32, size: u32| {
            put(&mut cx, count, &2_u32.to_le_bytes())?;
            put(&mut cx, size, &8_u32.to_le_bytes())?;
            wasmtime::Result::Ok(0_u32)
        })
        .expect("linked");
    linker
        .func_wrap(module, "environ_get", |mut cx: Caller<'_, Vec<u8>>, list: u32, text: u32| {
            put(&mut cx, list, &text.to_le_bytes())?;
            put(&mut cx, list + 4, &(text + 4).to_le_bytes())?;
            put(&mut cx, text, b"A=1\0B=2\0")?;
            wasmtime::Result::Ok(0_u32)
        })
        .expect("linked");
    linker
        .func_wrap(module, "proc_exit", |code: u32| -> wasmtime::Result<()> { wasmtime::bail!("exit {code}") })
        .expect("linked");
    linker
}

/// A module of these functions, each exported, with what WASI has to offer here.
fn program(body: &str) -> Vec<u8> {
    parsed(&format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1 3)
  (func (export "_start"))
  {body})"#
    ))
}

struct Run {
    store: Store<Vec<u8>>,
    instance: Instance,
}

impl Run {
    fn new(module: &[u8]) -> Self {
        let engine = Engine::default();
        let module = wasmtime::Module::new(&engine, module).expect("it compiles");
        let mut store = Store::new(&engine, Vec::new());
        let instance = linker(&engine).instantiate(&mut store, &module).expect("it starts");
        Self { store, instance }
    }

    /// What a function gives; a trap is its kind.
    fn call(&mut self, name: &str, arguments: &[i32]) -> Result<Vec<i64>, String> {
        let function = self.instance.get_func(&mut self.store, name).expect(name);
        let arguments: Vec<_> = arguments.iter().map(|n| Val::I32(*n)).collect();
        let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
        function.call(&mut self.store, &arguments, &mut results).map_err(|e| {
            e.downcast_ref::<wasmtime::Trap>().map_or_else(|| e.root_cause().to_string(), ToString::to_string)
        })?;
        Ok(results.iter().map(|v| v.i64().or(v.i32().map(i64::from)).expect("a number")).collect())
    }
}

type Result<T, E> = std::result::Result<T, E>;

/// Both ways.
fn both(body: &str) -> [Run; 2] {
    let module = program(body);
    let moved = move_up(&module).expect("it can be moved");
    Validator::new().validate_all(&moved).expect("valid");
    [Run::new(&module), Run::new(&moved)]
}

#[test]
fn a_moved_program_does_the_same_down_to_its_traps() {
    let [mut plain, mut moved] = both(
        r#"
  (data (i32.const 100) "hello ")
  (data (offset (i32.add (i32.const 100) (i32.const 6))) "world\n")
  (data $passive "passive")
  (table funcref (elem $write $load))
  (global (export "g") (mut i32) (i32.const 7))
  (func $load (export "load") (param i32) (result i32) (i32.load (local.get 0)))
  (func (export "load_far") (param i32) (result i32) (i32.load offset=65000 (local.get 0)))
  (func (export "store8") (param i32 i32) (i32.store8 offset=3 (local.get 0) (local.get 1)))
  (func (export "wide") (param i32) (result i64)
    (v128.store offset=8 (local.get 0) (v128.const i64x2 5 6))
    (f64.store offset=16 (local.get 0) (f64.const 1.5))
    (i64.add (i64.load offset=8 (local.get 0)) (i64.load offset=16 (local.get 0))))
  (func (export "size") (result i32) (memory.size))
  (func (export "grow") (param i32) (result i32) (memory.grow (local.get 0)))
  (func (export "copy") (param i32 i32 i32) (memory.copy (local.get 0) (local.get 1) (local.get 2)))
  (func (export "fill") (param i32 i32 i32) (memory.fill (local.get 0) (local.get 1) (local.get 2)))
  (func (export "init") (param i32 i32 i32) (memory.init $passive (local.get 0) (local.get 1) (local.get 2)))
  (func (export "say") (param i32 i32) (result i32)
    (i32.store (i32.const 16) (local.get 0)) (i32.store (i32.const 20) (i32.const 5))
    (i32.store (i32.const 24) (i32.const 106)) (i32.store (i32.const 28) (i32.const 6))
    (i32.add (call_indirect (param i32 i32 i32 i32) (result i32)
      (i32.const 1) (i32.const 16) (local.get 1) (i32.const 32) (i32.const 0)) (i32.load (i32.const 32))))
  (func (export "environ") (result i32 i32)
    (if (call $sizes (i32.const 40) (i32.const 44)) (then unreachable))
    (if (call $environ (i32.const 48) (i32.const 64)) (then unreachable))
    (i32.load (i32.load (i32.const 52))) (i32.load (i32.const 48)))
  (func (export "exit") (call $exit (i32.const 3)))"#,
    );
    let end = 65536;
    let calls: &[(&str, &[i32])] = &[
        ("load", &[100]),
        ("load", &[104]),
        ("load", &[end - 4]),
        ("load", &[end - 3]),
        ("load", &[-1]),
        ("load", &[-200_000]),
        ("load_far", &[532]),
        ("load_far", &[533]),
        ("load_far", &[-65_000]),
        ("store8", &[end - 4, 9]),
        ("store8", &[end - 3, 9]),
        ("wide", &[512]),
        ("wide", &[end - 23]),
        ("size", &[]),
        ("say", &[100, 2]),
        ("say", &[100, 0]),
        ("say", &[-5, 1]),
        ("say", &[end - 4, 1]),
        ("environ", &[]),
        ("copy", &[200, 100, 12]),
        ("load", &[206]),
        ("copy", &[end, 100, 0]),
        ("copy", &[end + 1, 100, 0]),
        ("copy", &[-1, 100, 0]),
        ("copy", &[100, -3, 4]),
        ("fill", &[300, 0x41, 8]),
        ("load", &[304]),
        ("fill", &[-2, 0, 1]),
        ("init", &[400, 1, 6]),
        ("load", &[402]),
        ("init", &[400, 1, 7]),
        ("grow", &[0]),
        ("grow", &[3]),
        ("grow", &[1]),
        ("load", &[end]),
        ("grow", &[1]),
        ("grow", &[1]),
        ("size", &[]),
        ("load", &[3 * end - 4]),
        ("load", &[3 * end - 3]),
        ("exit", &[]),
    ];
    let mut traps = 0;
    for (name, arguments) in calls {
        let (expected, found) = (plain.call(name, arguments), moved.call(name, arguments));
        assert_eq!(expected, found, "{name} {arguments:?}");
        traps += usize::from(expected.is_err());
    }
    assert_eq!(traps, 16, "both kinds of ends were seen");
    assert_eq!(plain.store.data(), b"helloworld\n");
    assert_eq!(moved.store.data(), b"helloworld\n");
}

#[test]
fn as_many_buffers_are_passed_on_as_there_is_room_for() {
    let [_, mut moved] = both(
        r#"(func (export "say") (param $n i32) (result i32) (local $at i32)
             (local.set $at (i32.const 1024))
             (loop $next
               (i32.store (local.get $at) (i32.const 100))
               (i32.store offset=4 (local.get $at) (i32.const 1))
               (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 60000))))
             (drop (call $write (i32.const 1) (i32.const 1024) (local.get $n) (i32.const 0)))
             (i32.load (i32.const 0)))"#,
    );
    for (asked, written) in [(0, 0), (1, 1), (1024, 1024), (1025, 1024), (-1, 1024)] {
        assert_eq!(moved.call("say", &[asked]), Ok(vec![written]), "{asked}");
    }
}

#[test]
fn the_adapter_gets_its_pages_and_no_more() {
    let moved = move_up(&program("")).expect("it can be moved");
    let page = PAGE as i32;
    let mut run = Run::new(&moved);
    // A page of scratch first, so that no address is 0.
    assert_eq!(run.call(ALLOCATE, &[0, 0, 8, page]), Ok(vec![i64::from(PAGE)]));
    assert_eq!(run.call(ALLOCATE, &[0, 0, 8, page]), Ok(vec![2 * i64::from(PAGE)]));
    assert!(run.call(ALLOCATE, &[0, 0, 1, 1]).is_err());

    let mut run = Run::new(&moved);
    assert_eq!(run.call(ALLOCATE, &[0, 0, 1, 3]), Ok(vec![i64::from(PAGE)]));
    assert_eq!(run.call(ALLOCATE, &[0, 0, 16, 1]), Ok(vec![i64::from(PAGE) + 16]));
    for refused in [[page, 3, 1, 6], [0, 3, 1, 6], [page, 0, 1, 6], [0, 0, 1, 2 * page], [0, 0, 1, -1]] {
        assert!(run.call(ALLOCATE, &refused).is_err(), "{refused:?}");
    }
}

#[test]
fn what_cannot_be_moved_or_has_an_allocator_stays_as_it_is() {
    let start = r#"(func (export "_start"))"#;
    let realloc = "(param i32 i32 i32 i32) (result i32) (unreachable)";
    let write = r#"(import "wasi_snapshot_preview1" "fd_write" (func"#;
    for text in [
        String::new(),
        start.into(),
        format!("{start} (memory i64 1)"),
        format!("{start} (memory 1 2 shared)"),
        format!("{start} (memory 1) (memory 1)"),
        format!("{start} (memory 65534)"),
        format!(r#"(import "env" "memory" (memory 1)) {start}"#),
        format!(r#"(import "env" "f" (func)) (memory 1) {start}"#),
        format!(r#"(import "wasi_snapshot_preview1" "no_such" (func)) (memory 1) {start}"#),
        format!(r#"{write} (param i32))) (memory 1) {start}"#),
        format!(r#"{write} (param i64 i32 i32 i32) (result i32))) (memory 1) {start}"#),
        format!(r#"{write} (param i32 i32 i32 i32) (result i64))) (memory 1) {start}"#),
        // The length of the list could not be asked for.
        format!(
            r#"(import "wasi_snapshot_preview1" "args_get" (func (param i32 i32) (result i32))) (memory 1) {start}"#
        ),
        format!(r#"{start} (memory 1) (func (export "cabi_realloc") {realloc})"#),
        format!(r#"{start} (memory 1) (func (export "cabi_realloc_adapter") {realloc})"#),
        format!(r#"{start} (memory 1) (@custom "component-type:x" "")"#),
        format!("{start} (memory 1) (func (drop (i32.load offset=4294900000 (i32.const 0))))"),
    ] {
        let module = parsed(&format!("(module {text})"));
        assert!(move_up(&module).is_none(), "{text}");
    }
    let moved = move_up(&parsed(&format!(r#"(module {start} (memory (export "memory") 65533))"#)));
    Validator::new().validate_all(&moved.expect("just enough room")).expect("valid");
}
