//! The binary as a script sees it: exit codes, where output goes, and what a closed pipe does.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn marcato(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_marcato"));
    command.env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn run(home: &Path, args: &[&str]) -> Output {
    marcato(home).args(args).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn codes_are_the_documented_ones() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let core = home.join("core.wasm");
    std::fs::write(&core, b"\0asm\x01\0\0\0").unwrap();
    std::fs::write(home.join("marcato.toml"), "name = \"a\"\ncomponent = \"core.wasm\"\ninstance = 3\n").unwrap();
    let core = core.to_str().unwrap();
    let dir = home.to_str().unwrap();
    let cases: &[(&[&str], i32, &str)] = &[
        (&["manifest", "schema"], 0, ""),
        (&["--version"], 0, ""),
        (&["nonsense"], 2, "unrecognized"),
        (&["scale", "a", "101"], 2, "101"),
        (&["app", "show", "Not_A_Name"], 2, "lower-case"),
        (&["apps"], 3, "marcato login"),
        (&["env", "set", "a", "K=v"], 2, "marcato env set a K"),
        (&["push", core], 8, "core module"),
        (&["push", dir], 8, "did you mean \"instances\"?"),
        (&["push", "/nowhere"], 8, "/nowhere"),
        (&["login", "http://localhost:1", "--token-stdin"], 2, "needs TLS"),
        (&["login", "https://127.0.0.1:1", "--token-stdin"], 7, "127.0.0.1:1"),
    ];
    for (args, expected, text) in cases {
        let output = run(home, args);
        assert_eq!(code(&output), *expected, "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn errors_are_json_when_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let output = run(home.path(), &["apps", "--json"]);
    assert!(output.stdout.is_empty());
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!((code(&output), &error["error"]["code"]), (3, &3.into()));
    assert!(error["error"]["next"].as_str().unwrap().contains("marcato login"));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    let mut child = marcato(home.path())
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    assert_eq!(text, "");
}

#[test]
fn completions_are_written_for_every_shell() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(home.path(), &["completions", shell]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("rollback"), "{shell}");
    }
}

#[test]
fn a_port_in_use_and_a_folder_in_use_are_told() {
    let home = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = run(home.path(), &["up", "--http", &address, "--https", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    assert_eq!(code(&output), 6, "{}", stderr(&output));
    assert!(stderr(&output).contains("--http 127.0.0.1:0"), "{}", stderr(&output));
}
