//! Compilation, in a process of its own: a component is untrusted input to a large compiler. Intent
//! flow; the code goes to the cache (`artifact`), never to a running sandbox.

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use marcato_api::{Bytes, Digest};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wasmtime::Engine;

use crate::config::CompilerCommand;
use crate::engine::{Dialect, code_config};
use crate::error::CompileError;

const MEMORY_VAR: &str = "MARCATO_COMPILE_MEMORY_BYTES";
const CPU_VAR: &str = "MARCATO_COMPILE_CPU_SECONDS";

/// Threads of one compilation: a push must not take every core from the guests that serve.
const THREADS: &str = "2";

/// Address space beside the memory limit: allocators and thread stacks reserve more than they use.
const RESERVE: u64 = 4 << 30;

/// How a line of the compiler's error text begins that says what of its confinement this machine does not have.
pub const CONFINEMENT_PREFIX: &str = "confinement: ";

/// What is read of a compiler's error text.
const STDERR_LIMIT: u64 = 16 << 10;
const MESSAGE_LIMIT: usize = 500;

/// Reads the component and checks that it is what the digest names.
pub(crate) fn read_verified(digest: &Digest, component: &Path) -> Result<Vec<u8>, CompileError> {
    let bytes = std::fs::read(component).map_err(CompileError::Read)?;
    let actual = Digest::of(&bytes);
    if actual == *digest { Ok(bytes) } else { Err(CompileError::WrongDigest { expected: digest.clone(), actual }) }
}

/// Runs the compiler process on these bytes.
pub(crate) async fn run(command: &CompilerCommand, component: &[u8], output: &Path) -> Result<(), CompileError> {
    let timeout = Duration::from(command.timeout_ms);
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .arg(output)
        .env_clear()
        .env(MEMORY_VAR, command.memory.0.to_string())
        .env(CPU_VAR, timeout.as_secs().saturating_mul(2).max(1).to_string())
        .env("RAYON_NUM_THREADS", THREADS)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(CompileError::Process)?;
    let stdin = child.stdin.take();
    let stderr = child.stderr.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A compiler that gives up early closes its end; its exit status says why.
            let _ = stdin.write_all(component).await;
        }
    };
    let listen = async {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let mut stderr = stderr;
            // Best effort: the exit status decides.
            let _ = (&mut stderr).take(STDERR_LIMIT).read_to_end(&mut text).await;
            let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
        }
        text
    };
    let finish = async {
        let ((), text, status) = tokio::join!(feed, listen, child.wait());
        status.map(|status| (status, text))
    };
    let (status, text) = match tokio::time::timeout(timeout, finish).await {
        Ok(result) => result.map_err(CompileError::Process)?,
        Err(_) => {
            child.kill().await.map_err(CompileError::Process)?;
            return Err(CompileError::TimedOut { timeout_ms: command.timeout_ms.0 });
        }
    };
    note_confinement(&text);
    match status.code() {
        Some(0) => Ok(()),
        Some(_) if !text.is_empty() => Err(CompileError::Rejected(first_line(&text))),
        _ => Err(CompileError::Killed { how: status.to_string(), memory: command.memory }),
    }
}

/// Logs what the compiler's process could not take from itself; once, as it is the same for each.
fn note_confinement(text: &[u8]) {
    static NOTED: std::sync::Once = std::sync::Once::new();
    let text = String::from_utf8_lossy(text);
    if let Some(less) = text.lines().find_map(|l| l.strip_prefix(CONFINEMENT_PREFIX)) {
        let less: String = less.chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect();
        NOTED.call_once(|| tracing::warn!(confinement = %less, "the compiler is not confined as well as could be"));
    }
}

/// The first line that says something, printable and bounded.
fn first_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let says = |l: &&str| !l.is_empty() && !l.starts_with(CONFINEMENT_PREFIX);
    let line = text.lines().map(str::trim).find(says).unwrap_or("no message");
    let line = line.strip_prefix("error: ").unwrap_or(line);
    let line = line.strip_prefix("not a component that compiles: ").unwrap_or(line);
    line.chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect()
}

/// What the compiler process runs: takes the limits in its environment on itself, reads a component and
/// writes its machine code to `output`. Call it from a process that does nothing else.
pub fn compile_child(component: &mut dyn Read, output: &Path) -> Result<(), CompileError> {
    limit_compiler()?;
    let mut file = std::fs::File::create(output).map_err(CompileError::Store)?;
    compile_to(component, &mut file)
}

/// The same for a process that limited itself ([`limit_compiler`]), opened its output, and has no files after that.
pub fn compile_to(component: &mut dyn Read, output: &mut std::fs::File) -> Result<(), CompileError> {
    let mut bytes = Vec::new();
    component.read_to_end(&mut bytes).map_err(CompileError::Read)?;
    let (dialect, code) = compile_bytes(&bytes)?;
    // An import that is missing is known now, and not at the first request. There is no code of what does not link.
    crate::link::check(dialect, &code).map_err(|e| CompileError::Rejected(e.to_string()))?;
    output.write_all(&code).and_then(|()| output.sync_all()).map_err(CompileError::Store)
}

/// Compiles in this process.
pub(crate) fn compile_bytes(bytes: &[u8]) -> Result<(Dialect, Vec<u8>), CompileError> {
    let component =
        crate::module::component_of(bytes).map_err(|why| CompileError::Rejected(first_line(why.as_bytes())))?;
    let compile = |dialect| Engine::new(&code_config(dialect))?.precompile_component(&component);
    // An export is named in the bytes as it is. What has the name for another reason still runs, at a greater cost.
    if !names_async(&component)
        && let Ok(code) = compile(Dialect::Plain)
    {
        return Ok((Dialect::Plain, code));
    }
    let code = compile(Dialect::Concurrent)
        .map_err(|e| CompileError::Rejected(first_line(format!("{e:#}").replace('\n', " ").as_bytes())))?;
    Ok((Dialect::Concurrent, code))
}

/// Whether an interface of WASI 0.3 is named in it.
fn names_async(bytes: &[u8]) -> bool {
    bytes.windows(5).any(|w| w == b"@0.3.")
}

/// Takes the limits in its environment on this process. It reads `/proc`, so before a confinement that hides that.
pub fn limit_compiler() -> Result<(), CompileError> {
    limit_self().map_err(CompileError::Process)
}

fn limit_self() -> std::io::Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let memory = number(MEMORY_VAR).map_or(Bytes::mib(1024), Bytes).0;
    let cpu_seconds = number(CPU_VAR).unwrap_or(120);
    // What the process has mapped so far: pages of 4 KiB, the first number of statm (proc(5)).
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let mapped = statm.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 4096;
    for (resource, limit) in [
        (Resource::RLIMIT_AS, mapped + memory + RESERVE),
        // Private writable memory, which is what really is used (getrlimit(2)).
        (Resource::RLIMIT_DATA, mapped + memory),
        (Resource::RLIMIT_CPU, cpu_seconds),
        (Resource::RLIMIT_FSIZE, 2 << 30),
        (Resource::RLIMIT_CORE, 0),
    ] {
        let (_, hard) = getrlimit(resource)?;
        let limit = limit.min(hard);
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}
