//! WASI 0.1 commands as web apps, and the files that an app brings along.

use marcato_api::files;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

use super::*;

const PLAIN: &str = "Content-Type: text/plain\\n\\n";

/// A module whose `_start` runs `body`; `text` lies at 1024 and is `$length` long. `$print` writes to a descriptor,
/// `$read` reads standard input to 65536 and gives how much.
fn command(text: &str, body: &str) -> Vec<u8> {
    let length = text.replace("\\n", "\n").len();
    let text = format!(
        r#"(module
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_create_directory" (func $mkdir (param i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 4)
  (data (i32.const 1024) "{text}")
  (global $length i32 (i32.const {length}))
  (func $print (param $to i32) (param $at i32) (param $size i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $size))
    (drop (call $fd_write (local.get $to) (i32.const 0) (i32.const 1) (i32.const 8))))
  (func $fill (param $from i32) (result i32)
    (i32.store (i32.const 0) (i32.const 65536))
    (i32.store (i32.const 4) (i32.const 65536))
    (if (call $fd_read (local.get $from) (i32.const 0) (i32.const 1) (i32.const 8)) (then (return (i32.const 0))))
    (i32.load (i32.const 8)))
  (func $say (call $print (i32.const 1) (i32.const 1024) (global.get $length)))
  (func (export "_start") {body}))"#
    );
    wat::parse_str(text).expect("a module")
}

fn hello() -> Vec<u8> {
    command(&format!("{PLAIN}hello"), "(call $say)")
}

/// Answers with what it is sent.
fn echo() -> Vec<u8> {
    command(
        PLAIN,
        "(local $n i32) (call $say)
         (loop $more
           (local.set $n (call $fill (i32.const 0)))
           (if (local.get $n) (then
             (call $print (i32.const 1) (i32.const 65536) (local.get $n))
             (br $more))))",
    )
}

/// Answers with its environment.
fn environment() -> Vec<u8> {
    command(
        PLAIN,
        "(call $say)
         (drop (call $environ_sizes (i32.const 16) (i32.const 20)))
         (drop (call $environ (i32.const 32768) (i32.const 65536)))
         (call $print (i32.const 1) (i32.const 65536) (i32.load (i32.const 20)))",
    )
}

async fn text(response: http::Response<crate::ResponseBody>) -> String {
    let bytes = response.into_body().collect().await.expect("a body").to_bytes();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn full(bytes: Vec<u8>) -> RequestBody {
    Full::new(Bytes::from(bytes)).map_err(|e| match e {}).boxed_unsync()
}

/// A body without a length.
fn unsized_body(pieces: usize, size: usize) -> RequestBody {
    let pieces =
        (0..pieces).map(move |_| Ok::<_, crate::BoxError>(http_body::Frame::data(Bytes::from(vec![b'x'; size]))));
    StreamBody::new(futures::stream::iter(pieces)).boxed_unsync()
}

#[tokio::test]
async fn a_command_answers_and_has_a_process_for_each_request() {
    let f = Fixture::new();
    let instance = f.start(&hello(), config(|c| c.reuse.max_requests = 10)).await;
    for _ in 0..20 {
        let response = instance.handle(request()).await.expect("an answer");
        assert_eq!(
            (response.status().as_u16(), &response.headers()["content-type"]),
            (200, &"text/plain".parse().expect("valid"))
        );
        assert_eq!(http_body::Body::size_hint(response.body()).exact(), Some(5), "a short answer is whole");
        assert_eq!(text(response).await, "hello");
    }
    assert_eq!((instance.counters().sandboxes, f.runtime.usage().sandboxes), (20, 0));
}

#[tokio::test]
async fn a_body_streams_through_a_command() {
    let f = Fixture::new();
    let instance = f.start(&echo(), RevisionConfig::default()).await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let response = instance.handle(with_body(full(sent.clone()))).await.expect("an answer");
    let back = response.into_body().collect().await.expect("a body").to_bytes();
    assert!(back == sent, "{} bytes came back", back.len());
}

#[tokio::test]
async fn a_command_that_is_ahead_waits_and_ends_with_its_client() {
    let f = Fixture::new();
    let endless = command(
        PLAIN,
        "(call $say) (loop $on (call $print (i32.const 1) (i32.const 65536) (i32.const 65536)) (br $on))",
    );
    let instance = f.start(&endless, config(|c| c.limits.cpu_ms = Millis::secs(60))).await;
    let mut body = instance.handle(request()).await.expect("an answer").into_body();
    for _ in 0..50 {
        let frame = body.frame().await.expect("more").expect("fine");
        assert!(frame.data_ref().expect("data").len() <= 128 << 10, "no more than there is room for");
    }
    assert_eq!(f.runtime.usage().sandboxes, 1);
    drop(body);
    until("the process ends", || f.runtime.usage().sandboxes == 0).await;
}

#[tokio::test]
async fn a_body_without_a_length_is_measured_up_to_a_bound() {
    let f = Fixture::new();
    let instance = f.start(&environment(), RevisionConfig::default()).await;
    let response = instance.handle(with_body(unsized_body(3, 1000))).await.expect("an answer");
    assert!(text(response).await.contains("CONTENT_LENGTH=3000\0"));
    let response = instance.handle(with_body(unsized_body(20, 100_000))).await.expect("an answer");
    assert_eq!(response.status(), 411);
    let error = instance.handle(with_body(unsized_body(1, 17 << 20))).await.expect_err("over its limit");
    assert_eq!(error.kind, ProblemKind::TooLarge);
}

#[tokio::test]
async fn the_request_is_in_the_environment_and_a_proxy_is_not() {
    let f = Fixture::new();
    let settings = config(|c| drop(c.env.insert("COLOUR".into(), "blue".into())));
    let instance = f.start(&environment(), settings).await;
    let mut asked = request();
    *asked.uri_mut() = "/a/b?c=d".parse().expect("valid");
    asked.headers_mut().insert("proxy", "http://evil.example".parse().expect("valid"));
    asked.headers_mut().insert("x-marcato-instance", "secret".parse().expect("valid"));
    let env = text(instance.handle(asked).await.expect("an answer")).await;
    for line in ["COLOUR=blue", "PATH_INFO=/a/b", "QUERY_STRING=c=d", "REQUEST_METHOD=GET", "SERVER_NAME=app.localhost"]
    {
        assert!(env.split('\0').any(|l| l == line), "{line}: {env:?}");
    }
    assert!(!env.contains("HTTP_PROXY") && !env.contains("MARCATO_INSTANCE"), "{env:?}");
    let mut bad = request();
    *bad.uri_mut() = "/%00".parse().expect("valid");
    assert_eq!(instance.handle(bad).await.expect("an answer").status(), 400);
}

#[tokio::test]
async fn a_status_other_than_zero_and_a_missing_header_are_failures() {
    let f = Fixture::new();
    let said = format!("{PLAIN}x");
    for (guest, why) in [
        (command("", "(call $exit (i32.const 3))"), "status 1"),
        (command(&said, "(call $say) (call $exit (i32.const 1))"), "status 1"),
        (command("", ""), "without an answer"),
        (command("Content-Type: text/plain\\n", "(call $say)"), "within its header"),
        (command("<html>\\n\\n", "(call $say) (loop $on (br $on))"), "without a colon"),
        (command("Location: /x\\n\\n", "(call $say)"), "redirected more than"),
        (command(&said, "(unreachable)"), "unreachable"),
    ] {
        let instance = f.start(&guest, RevisionConfig::default()).await;
        let error = instance.handle(request()).await.expect_err(why);
        assert_eq!((error.kind, error.not_started), (ProblemKind::GuestFailed, false), "{why}");
        assert!(f.logged(why), "{why}: {:?}", f.lines.0);
    }
    let fine = f.start(&command(&said, "(call $say) (call $exit (i32.const 0))"), RevisionConfig::default()).await;
    assert_eq!(text(fine.handle(request()).await.expect("an answer")).await, "x");
    let loud = command("oh dear\\n", "(call $print (i32.const 2) (i32.const 1024) (global.get $length))");
    f.start(&loud, RevisionConfig::default()).await.handle(request()).await.expect_err("no answer");
    assert!(
        f.lines
            .0
            .lock()
            .expect("fine")
            .iter()
            .any(|(id, s, l)| id == "r1" && *s == LogStream::Stderr && l == "oh dear")
    );
}

#[tokio::test]
async fn the_limits_of_components_hold_for_commands() {
    let f = Fixture::new();
    let spin = f.start(&command(PLAIN, "(loop $on (br $on))"), config(|c| c.limits.cpu_ms = Millis(50))).await;
    assert_eq!(spin.handle(request()).await.expect_err("spins").kind, ProblemKind::CpuExhausted);
    let wait = f.start(&echo(), config(|c| c.limits.time_ms = Millis(100))).await;
    let silent =
        StreamBody::new(futures::stream::pending::<Result<http_body::Frame<Bytes>, crate::BoxError>>()).boxed_unsync();
    let mut asked = with_body(silent);
    asked.headers_mut().insert("content-length", "5".parse().expect("valid"));
    let cut = match wait.handle(asked).await {
        Ok(response) => response.into_body().collect().await.is_err(),
        Err(error) => error.kind == ProblemKind::TimedOut,
    };
    assert!(cut, "a body that never comes");
    let small = f.start(&hello(), config(|c| c.limits.memory_bytes = ByteCount::kib(64))).await;
    assert_eq!(small.handle(request()).await.expect_err("too large").kind, ProblemKind::GuestFailed);
    let tight = f.start(&echo(), config(|c| c.limits.response_body_bytes = ByteCount(10))).await;
    let cut = match tight.handle(with_body(full(vec![b'x'; 100]))).await {
        Ok(response) => response.into_body().collect().await.is_err(),
        Err(_) => true,
    };
    assert!(cut && fired(&tight, "response_body_bytes") == 1);
}

#[tokio::test]
async fn bundled_files_are_read_and_nothing_else() {
    let f = Fixture::new();
    // Paths: index.html at 1024, ../key at 1034, new at 1040, link at 1043.
    let guest = command(
        "index.html../keynewlinkyn",
        r#"
        (local $n i32)
        (i64.store (i32.const 512) (i64.const 0x203a656d616e2d78)) ;; "x-name: " header, then two newlines
        (i32.store16 (i32.const 520) (i32.const 0x0a0a))
        (call $print (i32.const 1) (i32.const 512) (i32.const 10))
        (call $tell (call $open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 10) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 24)))
        (local.set $n (call $fill (i32.load (i32.const 24))))
        (call $tell (call $open (i32.const 3) (i32.const 1) (i32.const 1034) (i32.const 6) (i32.const 0) (i64.const 2) (i64.const 2) (i32.const 0) (i32.const 28)))
        (call $tell (call $open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const 10) (i32.const 0) (i64.const 66) (i64.const 66) (i32.const 0) (i32.const 28)))
        (call $tell (call $open (i32.const 3) (i32.const 1) (i32.const 1040) (i32.const 3) (i32.const 1) (i64.const 66) (i64.const 66) (i32.const 0) (i32.const 28)))
        (call $tell (call $unlink (i32.const 3) (i32.const 1024) (i32.const 10)))
        (call $tell (call $mkdir (i32.const 3) (i32.const 1040) (i32.const 3)))
        (call $tell (call $symlink (i32.const 1034) (i32.const 6) (i32.const 3) (i32.const 1043) (i32.const 4)))
        (call $print (i32.const 1) (i32.const 65536) (local.get $n)))
        (func $tell (param $errno i32)
          (call $print (i32.const 1) (i32.add (i32.const 1047) (i32.ne (local.get $errno) (i32.const 0))) (i32.const 1))"#,
    );
    let archive = files::pack(&[("index.html".to_owned(), b"<p>from a file".to_vec())].into()).expect("fits");
    let with_files = files::append(guest.clone(), &archive);
    let instance = f.start(&with_files, RevisionConfig::default()).await;
    assert_eq!(text(instance.handle(request()).await.expect("an answer")).await, "ynnnnnn<p>from a file");
    let plain = f.start(&guest, RevisionConfig::default()).await;
    assert_eq!(text(plain.handle(request()).await.expect("an answer")).await, "nnnnnnn");
    let digest = Digest::of(&with_files);
    f.cache.forget(&digest).expect("goes");
    let left = std::fs::read_dir(f.dir.path().join("cache")).expect("reads");
    assert!(left.filter_map(Result::ok).all(|e| !e.file_name().to_string_lossy().starts_with(digest.hex())));
}

#[tokio::test]
async fn an_archive_that_is_none_is_refused() {
    let f = Fixture::new();
    let bad = files::append(hello(), b"../../etc/passwd");
    assert!(matches!(f.cache.compile_here(&bad), Err(CompileError::Rejected(_))));
    assert!(!f.cache.is_compiled(&Digest::of(&bad)));
}

/// As Go's allocator does: it notes where memory ends, takes what grows there for its own, and uses all of it. The adapter,
/// which lives in the same memory, comes between.
#[tokio::test]
async fn a_program_that_owns_all_of_its_memory_and_the_adapter_live_together() {
    let f = Fixture::new();
    let greedy = command(
        &format!("{PLAIN}fine "),
        "(local $end i32) (local $grown i32)
         (local.set $end (i32.mul (memory.size) (i32.const 65536)))
         (call $say)
         (loop $again
           ;; What the call gives is not looked at, as Go does.
           (drop (memory.grow (i32.const 2)))
           (memory.fill (local.get $end) (i32.const 0xff) (i32.const 131072))
           (local.set $end (i32.add (local.get $end) (i32.const 131072)))
           (call $print (i32.const 1) (i32.const 1050) (i32.const 5))
           (br_if $again (i32.lt_u (local.tee $grown (i32.add (local.get $grown) (i32.const 1))) (i32.const 5))))",
    );
    // As the encoder alone makes it, one overwrites the other.
    let bare = ComponentEncoder::default()
        .module(&greedy)
        .and_then(|e| e.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER))
        .and_then(|mut e| e.encode())
        .expect("a component");
    let broken = match f.start(&bare, config(|_| {})).await.handle(request()).await {
        Ok(response) => response.into_body().collect().await.is_err(),
        Err(error) => error.kind == ProblemKind::GuestFailed,
    };
    assert!(broken, "the adapter's state survived");

    let response = f.start(&greedy, config(|_| {})).await.handle(request()).await.expect("an answer");
    assert_eq!(text(response).await, "fine ".repeat(6));
}
