//! Guests as text: components that do one thing.

/// The types of `wasi:http@0.2.0` that a handler needs.
const TYPES: &str = r#"
  (import "wasi:http/types@0.2.0" (instance $types
    (type $text (option string))
    (type $short (option u16))
    (type $byte (option u8))
    (type $word (option u32))
    (type $long (option u64))
    (type $dns (record (field "rcode" $text) (field "info-code" $short)))
    (export "DNS-error-payload" (type $dns-e (eq $dns)))
    (type $tls (record (field "alert-id" $byte) (field "alert-message" $text)))
    (export "TLS-alert-received-payload" (type $tls-e (eq $tls)))
    (type $field (record (field "field-name" $text) (field "field-size" $word)))
    (export "field-size-payload" (type $field-e (eq $field)))
    (type $maybe-field (option $field-e))
    (type $code (variant
      (case "DNS-timeout") (case "DNS-error" $dns-e) (case "destination-not-found") (case "destination-unavailable")
      (case "destination-IP-prohibited") (case "destination-IP-unroutable") (case "connection-refused")
      (case "connection-terminated") (case "connection-timeout") (case "connection-read-timeout")
      (case "connection-write-timeout") (case "connection-limit-reached") (case "TLS-protocol-error")
      (case "TLS-certificate-error") (case "TLS-alert-received" $tls-e) (case "HTTP-request-denied")
      (case "HTTP-request-length-required") (case "HTTP-request-body-size" $long)
      (case "HTTP-request-method-invalid") (case "HTTP-request-URI-invalid") (case "HTTP-request-URI-too-long")
      (case "HTTP-request-header-section-size" $word) (case "HTTP-request-header-size" $maybe-field)
      (case "HTTP-request-trailer-section-size" $word) (case "HTTP-request-trailer-size" $field-e)
      (case "HTTP-response-incomplete") (case "HTTP-response-header-section-size" $word)
      (case "HTTP-response-header-size" $field-e) (case "HTTP-response-body-size" $long)
      (case "HTTP-response-trailer-section-size" $word) (case "HTTP-response-trailer-size" $field-e)
      (case "HTTP-response-transfer-coding" $text) (case "HTTP-response-content-coding" $text)
      (case "HTTP-response-timeout") (case "HTTP-upgrade-failed") (case "HTTP-protocol-error")
      (case "loop-detected") (case "configuration-error") (case "internal-error" $text)))
    (export "error-code" (type $code-e (eq $code)))
    (export "incoming-request" (type $request (sub resource)))
    (export "response-outparam" (type $out (sub resource)))
    (export "outgoing-response" (type $response (sub resource)))
    (export "fields" (type $fields (sub resource)))
    (export "[constructor]fields" (func (result (own $fields))))
    (export "[constructor]outgoing-response" (func (param "headers" (own $fields)) (result (own $response))))
    (export "outgoing-request" (type $asked (sub resource)))
    (export "outgoing-body" (type $body (sub resource)))
    (export "[constructor]outgoing-request" (func (param "headers" (own $fields)) (result (own $asked))))
    (export "[method]outgoing-request.set-authority" (func
      (param "self" (borrow $asked)) (param "authority" (option string)) (result (result))))
    (export "[method]outgoing-response.body" (func (param "self" (borrow $response)) (result (result (own $body)))))
    (export "[static]response-outparam.set" (func
      (param "param" (own $out)) (param "response" (result (own $response) (error $code-e)))))
  ))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (core module $memory (memory (export "memory") 1) (data (i32.const 1024) "TEXT"))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $mem))
  (core func $fields (canon lower (func $types "[constructor]fields")))
  (core func $response (canon lower (func $types "[constructor]outgoing-response")))
  (core func $set (canon lower (func $types "[static]response-outparam.set") (memory $mem)))
  (core func $asked (canon lower (func $types "[constructor]outgoing-request")))
  (core func $authority (canon lower (func $types "[method]outgoing-request.set-authority") (memory $mem)))
  (core func $body (canon lower (func $types "[method]outgoing-response.body") (memory $mem)))
"#;

/// A component whose handler runs `body`; `$out` is the response's outparam. `memory` is in pages.
pub(super) fn handler(memory: u32, body: &str) -> Vec<u8> {
    let text = format!(
        r#"(component {TYPES}
  (core module $guest
    (import "host" "fields" (func $fields (result i32)))
    (import "host" "response" (func $response (param i32) (result i32)))
    (import "host" "set" (func $set (param i32 i32 i32 i32 i64 i32 i32 i32 i32)))
    (import "host" "asked" (func $asked (param i32) (result i32)))
    (import "host" "authority" (func $authority (param i32 i32 i32 i32) (result i32)))
    (import "host" "body" (func $body (param i32 i32)))
    (memory $own (export "own") {memory})
    (global $served (mut i32) (i32.const 0))
    (func $answer (param $out i32)
      (call $set (local.get $out) (i32.const 0) (call $response (call $fields))
        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0)))
    (func $handle (export "handle") (param $request i32) (param $out i32) (local $n i32) {body}))
  (core instance $guest (instantiate $guest (with "host" (instance
    (export "fields" (func $fields)) (export "response" (func $response)) (export "set" (func $set))
    (export "asked" (func $asked)) (export "authority" (func $authority)) (export "body" (func $body))))))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out))
    (canon lift (core func $guest "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#
    );
    let data = if body.contains("$authority") { "a".repeat(TEXT) } else { String::new() };
    wat::parse_str(text.replace("TEXT", &data)).expect("the guest's text is valid")
}

/// Bytes of "a" at 1024 of the memory that calls carry text from.
const TEXT: usize = 16 << 10;

/// Makes `fields` without an end.
pub(super) fn handles() -> Vec<u8> {
    handler(1, "(loop $again (drop (call $fields)) (br $again))")
}

/// Makes requests with long authorities until it may not, then answers.
pub(super) fn authorities() -> Vec<u8> {
    let body = format!(
        "(loop $again (br_if $again (i32.eqz (call $authority (call $asked (call $fields)) (i32.const 1) (i32.const 1024) (i32.const {TEXT}))))) (call $answer (local.get $out))"
    );
    handler(1, &body)
}

/// Calls itself without an end.
pub(super) fn recursion() -> Vec<u8> {
    handler(1, "(call $handle (local.get $request) (local.get $out))")
}

/// Answers with a body that never has a byte, and loops.
pub(super) fn stalled_body() -> Vec<u8> {
    let body = "(local.set $n (call $response (call $fields))) (call $body (local.get $n) (i32.const 0))
      (call $set (local.get $out) (i32.const 0) (local.get $n)
        (i32.const 0) (i64.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0))
      (loop $again (br $again))";
    handler(1, body)
}

/// Answers 200.
pub(super) fn hello() -> Vec<u8> {
    handler(1, "(call $answer (local.get $out))")
}

/// Answers its first request only, so that reuse shows.
pub(super) fn once() -> Vec<u8> {
    handler(
        1,
        "(if (global.get $served) (then unreachable)) (global.set $served (i32.const 1)) (call $answer (local.get $out))",
    )
}

pub(super) fn trap() -> Vec<u8> {
    handler(1, "unreachable")
}

pub(super) fn endless() -> Vec<u8> {
    handler(1, "(loop $again (br $again))")
}

pub(super) fn silent() -> Vec<u8> {
    handler(1, "")
}

/// Grows by `pages`; traps when it may not, else answers.
pub(super) fn grow(pages: u32) -> Vec<u8> {
    let body = format!(
        "(if (i32.eq (memory.grow $own (i32.const {pages})) (i32.const -1)) (then unreachable)) (call $answer (local.get $out))"
    );
    handler(1, &body)
}

/// Grows by `pages` and answers either way.
pub(super) fn grow_and_go_on(pages: u32) -> Vec<u8> {
    handler(1, &format!("(drop (memory.grow $own (i32.const {pages}))) (call $answer (local.get $out))"))
}

/// Answers, then never ends.
pub(super) fn answer_then_loop() -> Vec<u8> {
    handler(1, "(call $answer (local.get $out)) (loop $again (br $again))")
}

/// Needs an interface that nobody has.
pub(super) fn alien() -> Vec<u8> {
    let text = r#"(component (import "acme:rocket/launch@1.0.0" (instance (export "go" (func)))))"#;
    wat::parse_str(text).expect("the guest's text is valid")
}

/// Exports nothing.
pub(super) fn empty() -> Vec<u8> {
    wat::parse_str("(component)").expect("the guest's text is valid")
}
