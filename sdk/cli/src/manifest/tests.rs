//! Good manifests, wrong ones with their messages, garbage, and the committed schema.

use marcato_api::{Bytes, Millis, RevisionConfig};

use super::*;

const FULL: &str = r#"
name = "shop"
component = "target/shop.wasm"
org = "acme"
space = "prod"
routes = ["shop.example.org/api", "B.example.org"]
instances = 2
concurrency = 10
queue = 0
queue_timeout = "500ms"
allowed_outbound_hosts = ["api.example.org", "*.example.net", "10.0.0.7:8080", "[::1]:80"]

[limits]
memory = "64MiB"
instance_memory = "1GiB"
time = "2m"
cpu = "3s"
request_body = "0B"
response_body = "10 KiB"

[reuse]
max_requests = 100
concurrent = 4
idle = "1h"

[placement]
require = { disk = "ssd" }
prefer = { rack = "b" }
cpu_millis = 250
one_per_host = true
apart_from = ["batch"]

[env]
GREETING = "Grüezi"
SETUP_TOKEN = { generate = 32 }

[[bindings]]
name = "register"
service = "shop-register"
kind = "access"
"#;

fn parse(text: &str) -> Result<Manifest, String> {
    Manifest::parse(text, "marcato.toml").map_err(|e| e.to_string())
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text)
}

#[test]
fn a_full_manifest_becomes_a_config() {
    let m = parse(FULL).unwrap();
    let config = m.config();
    assert_eq!(config.limits.memory_bytes, Bytes::mib(64));
    assert_eq!(config.limits.response_body_bytes, Bytes::kib(10));
    assert_eq!(config.limits.time_ms, Millis(120_000));
    assert_eq!(config.reuse.idle_ms, Millis(3_600_000));
    assert_eq!((config.concurrency, config.queue, config.queue_timeout_ms), (10, 0, Millis(500)));
    let rules = &config.placement;
    assert_eq!((rules.require["disk"].as_str(), rules.prefer["rack"].as_str()), ("ssd", "b"));
    assert_eq!((rules.cpu_millis, rules.one_per_host, rules.apart_from[0].as_str()), (250, true, "batch"));
    assert_eq!(config.bindings[0].service.as_str(), "shop-register");
    let routes: Vec<_> = m.routes().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(routes, ["shop.example.org/api", "b.example.org/"]);
    assert!(config.env.is_empty(), "env travels as changes");
    config.validate().unwrap();
}

#[test]
fn the_smallest_manifest_has_the_defaults() {
    let m = parse("name = \"a\"\ncomponent = \"a.wasm\"").unwrap();
    assert_eq!(m.config(), RevisionConfig::default());
    assert_eq!((m.routes(), m.instances), (None, None));
}

#[test]
fn a_value_is_generated_once() {
    let m = parse(FULL).unwrap();
    let (changes, generated) = m.env_changes(&[]);
    assert_eq!(changes["GREETING"].as_deref(), Some("Grüezi"));
    assert_eq!(generated["SETUP_TOKEN"].len(), 64);
    assert_eq!(changes["SETUP_TOKEN"].as_ref(), Some(&generated["SETUP_TOKEN"]));
    assert_ne!(generated, m.env_changes(&[]).1, "random");
    let (changes, generated) = m.env_changes(&["SETUP_TOKEN".to_owned()]);
    assert!(generated.is_empty() && !changes.contains_key("SETUP_TOKEN"));
    assert!(!format!("{m:?}").contains("Grüezi"), "env values are not for logs");
}

#[test]
fn an_unknown_field_is_found_and_the_right_one_suggested() {
    let head = "name = \"a\"\ncomponent = \"a.wasm\"\n";
    for (text, place, meant) in [
        ("concurency = 3", "marcato.toml:3:1", "\"concurrency\""),
        ("[limits]\nmem = \"1MiB\"", "marcato.toml:4:1", "\"memory\""),
        ("[limits]\nrequest-body = \"1MiB\"", "marcato.toml:4:1", "\"request_body\""),
        ("[reuse]\nmax_request = 3", "marcato.toml:4:1", "\"max_requests\""),
        ("[[bindings]]\nname = \"x\"\nservise = \"x\"\nkind = \"access\"", "marcato.toml:5:1", "\"service\""),
        ("[env]\nA = { generat = 3 }", "marcato.toml:4", "\"generate\""),
        ("[[bindings]]\nname = \"x\"\nservice = \"x\"\nkind = \"acces\"", "marcato.toml:6:8", "\"access\""),
        ("instance = 3", "marcato.toml:3:1", "\"instances\""),
    ] {
        let message = refused(&format!("{head}{text}"));
        assert!(message.starts_with(place) && message.contains(&format!("did you mean {meant}?")), "{message}");
    }
    let message = refused(&format!("{head}[limits]\nzzz = 1"));
    assert!(message.contains("known here: memory, instance_memory"), "{message}");
}

#[test]
fn wrong_values_are_named_with_their_line() {
    let head = "name = \"a\"\ncomponent = \"a.wasm\"\n";
    for (text, place, part) in [
        ("instances = 101", "marcato.toml:3:1", "100"),
        ("concurrency = 0", "marcato.toml:3:1", "concurrency: 0 is not within 1 to 10000"),
        ("concurrency = -1", "marcato.toml:3:15", "integer"),
        ("[limits]\nmemory = \"2GiB\"", "marcato.toml:4:1", "limits.memory: 2 GiB is not within 64 KiB to 1 GiB"),
        ("[limits]\nmemory = \"600MiB\"", "marcato.toml", "limits.instance_memory"),
        ("[limits]\nmemory = 1024", "marcato.toml:4:10", "128MiB"),
        ("[limits]\ntime = \"30\"", "marcato.toml:4:8", "30s"),
        ("[limits]\ntime = \"30 sec\"", "marcato.toml:4:8", "(ms, s, m, h)"),
        ("queue_timeout = \"61s\"", "marcato.toml:3:1", "queue_timeout"),
        ("route = \"https://x\"", "marcato.toml:3:9", "route host"),
        ("route = \"a\"\nroutes = [\"b\"]", "marcato.toml:4:1", "exclude"),
        ("routes = []", "marcato.toml:3:1", "empty"),
        ("allowed_outbound_hosts = [\"http://x\"]", "marcato.toml:3:1", "without scheme"),
        ("[placement]\ncpu_millis = -1", "marcato.toml:4:14", "integer"),
        ("[placement]\ncpu_millis = 2000000", "marcato.toml:4:1", "placement.cpu_millis: 2000000 is not within 0 to"),
        ("[placement]\napart_from = [\"A b\"]", "marcato.toml:4:14", "lower-case"),
        ("[placement]\nrequire = [\"ssd\"]", "marcato.toml:4:11", "map"),
        ("[env]\nA = 1", "marcato.toml:4:5", "text in quotes"),
        ("[env]\nA = { generate = 0 }", "marcato.toml:4", "1 to 1024"),
        ("[env]\n\"A=B\" = \"x\"", "marcato.toml:3:2", "env"),
    ] {
        let message = refused(&format!("{head}{text}"));
        assert!(message.starts_with(place) && message.contains(part), "{text}: {message}");
    }
    assert!(refused("component = \"a\"").contains("name"));
    assert!(refused("name = \"A_b\"\ncomponent = \"a\"").contains("lower-case"));
    let twice = "[[bindings]]\nname = \"x\"\nservice = \"x\"\nkind = \"access\"\n";
    assert!(refused(&format!("{head}{twice}{twice}")).contains("two bindings"));
}

#[test]
fn a_value_of_the_wrong_type_is_named_by_its_path() {
    let head = "name = \"a\"\ncomponent = \"a.wasm\"\n";
    for (text, start, part) in [
        ("[limits]\nmemory = 1024", "marcato.toml:4:10: limits.memory: ", "integer `1024`"),
        ("[limits]\nmemory = \"128\"", "marcato.toml:4:10: limits.memory: ", "is not a size"),
        ("[limits]\ntime = 30", "marcato.toml:4:8: limits.time: ", "30s"),
        ("limits = 5", "marcato.toml:3:10: limits: ", "integer `5`"),
        ("concurrency = \"many\"", "marcato.toml:3:15: concurrency: ", "string \"many\""),
        ("instances = 1.5", "marcato.toml:3:13: instances: ", "floating point"),
        ("reuse = { max_requests = true }", "marcato.toml:3:26: reuse.max_requests: ", "boolean `true`"),
        ("route = [\"a\"]", "marcato.toml:3:9: route: ", "a route such as"),
        ("routes = [\"a\", 7]", "marcato.toml:3:16: routes[1]: ", "integer `7`"),
        ("allowed_outbound_hosts = \"a\"", "marcato.toml:3:26: allowed_outbound_hosts: ", "sequence"),
        ("[env]\nA = 1", "marcato.toml:4:5: env.A: ", "text in quotes"),
        ("[env]\nA = { generate = \"x\" }", "marcato.toml:4:", "env.A"),
        ("[[bindings]]\nname = \"x\"\nservice = 3", "marcato.toml:5:11: bindings[0].service: ", "integer `3`"),
        ("[[bindings]]\nname = \"x\"\nservice = \"y\"", "marcato.toml:3:1: bindings[0]: ", "`kind`"),
        ("name = 5", "marcato.toml:3:", "duplicate key"),
    ] {
        let message = refused(&format!("{head}{text}"));
        assert!(message.starts_with(start) && message.contains(part), "{text}: {message}");
    }
    let message = refused("name = 5\ncomponent = \"a.wasm\"");
    assert!(message.starts_with("marcato.toml:1:8: name: ") && message.contains("integer `5`"), "{message}");
    // Found by the fuzz target: a value was quoted whole, however long.
    let message = refused(&format!("name = \"{}\"\ncomponent = \"a.wasm\"", "A".repeat(100_000)));
    assert!(message.starts_with("marcato.toml:1:8: name: ") && message.len() < 1100, "{} bytes", message.len());
    // What a person typed does not reach a terminal's control sequences.
    let message = refused(&format!("{head}[env]\n\"\\u001b[2J\" = 1"));
    assert!(!message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn garbage_is_refused_without_a_panic() {
    for text in [
        "",
        "\0",
        "=",
        "[",
        "name",
        "name = ",
        "name = \"\u{0}\"",
        "[[[[",
        "a.b.c = 1",
        "\u{feff}",
        "name=1\nname=2",
        "ü = \"ü\"",
    ] {
        assert!(parse(text).is_err(), "{text:?}");
    }
    // Every prefix, and every single-byte damage that is still UTF-8.
    for cut in (0..FULL.len()).filter(|i| FULL.is_char_boundary(*i)) {
        let _ = parse(&FULL[..cut]);
    }
    for at in 0..FULL.len() {
        for byte in [b'"', b'\n', b'{', b'=', 0, b'['] {
            let mut bytes = FULL.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes) {
                let _ = parse(&text);
            }
        }
    }
    for text in ["18446744073709551615GiB", "1KB", "-1B", "MiB", "1.5MiB", "１MiB", "999999999999999999999B", "1 0B"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
}

#[test]
fn the_committed_schema_is_current() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/marcato.schema.json");
    let committed = std::fs::read_to_string(file).unwrap_or_default();
    assert!(committed == schema(), "run: cargo run -p marcato-cli -- manifest schema > docs/marcato.schema.json");
}
