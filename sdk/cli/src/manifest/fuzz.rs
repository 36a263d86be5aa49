//! Fuzz targets: `marcato.toml`, and the sizes and times that it and the commands' options have.

use marcato_api::Route;
use marcato_fuzz::{Input, target};

use super::*;

const FULL: &str = r#"
name = "shop"
component = "target/shop.wasm"
files = "public/"
org = "acme"
routes = ["shop.example.org/api", "B.example.org"]
instances = 2
concurrency = 10
queue_timeout = "500ms"
allowed_outbound_hosts = ["api.example.org", "*.example.net", "10.0.0.7:8080", "[::1]:80"]
[limits]
memory = "64MiB"
cpu = "3s"
buffer = "1MiB"
outbound_requests = 3
[reuse]
max_requests = 100
idle = "1h"
[env]
GREETING = "Grüezi"
SETUP_TOKEN = { generate = 32 }
[[bindings]]
name = "register"
service = "shop-register"
kind = "access"
"#;
const SMALL: &str = "name = \"a\"\ncomponent = \"a.wasm\"\nroute = \"a.b/c\"\n";
const WORDS: &[&str] = &[
    "name = ",
    "component = ",
    "\"a\"",
    "\"\"",
    "\n",
    "[limits]\n",
    "[env]\n",
    "[[bindings]]\n",
    "kind = \"keyvalue\"",
    "=",
    ".",
    "memory = \"1GiB\"\n",
    "time = \"1ms\"\n",
    "{ generate = 1 }",
    "A",
    "18446744073709551615",
    "-1",
    "0",
    "1e9",
    "\"\"\"",
    "'",
    "\\u0000",
    "\\u001b",
    "\u{202e}",
    "\u{85}",
    "ü",
    "#",
    "[",
    "]",
    "{",
    "}",
    ",",
    "1979-05-27T07:32:00Z",
    "inf",
    "\"*.a\"",
    "routes = [\"a.b\"]\n",
    "instance_memory = \"64GiB\"\n",
];

/// What is taken is within every limit, means the same on the way to the platform, and reads the same when it is
/// written again; what is not is refused in one line of text that names a place in the file.
#[test]
fn fuzz_manifest() {
    target!(3000, |input: &Input| check(&input.text(&[FULL, SMALL], WORDS)));
}

#[track_caller]
fn check(text: &str) {
    let manifest = match Manifest::parse(text, "marcato.toml") {
        Ok(manifest) => manifest,
        Err(error) => return check_error(text, &error.to_string()),
    };
    let (changes, generated) = manifest.env_changes(&[]);
    let mut config = manifest.config();
    config.env = changes.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    config.validate().unwrap();
    assert!(generated.iter().all(|(key, value)| config.env[key] == *value && value.len() <= 2048));
    assert!(manifest.instances.is_none_or(|n| n <= 100));
    for route in manifest.routes().unwrap_or_default() {
        assert_eq!(Route::parse(&route.to_string()), Ok(route));
    }
    let sent = serde_json::to_vec(&config).unwrap();
    assert_eq!(serde_json::from_slice::<RevisionConfig>(&sent).unwrap(), config);
    assert_eq!(manifest.name.as_str().parse::<AppName>().unwrap(), manifest.name);
}

#[track_caller]
fn check_error(text: &str, said: &str) {
    assert!(said.chars().all(|c| !c.is_control()), "{said:?}");
    assert!(said.chars().count() < 1100, "{} bytes", said.len());
    let place = said.strip_prefix("marcato.toml:").unwrap_or_else(|| panic!("no file: {said}"));
    let mut numbers = place.split(':').map_while(|part| part.parse::<usize>().ok());
    if let (Some(line), Some(column)) = (numbers.next(), numbers.next()) {
        // The end of the text counts as a place.
        let lines: Vec<_> = text.split('\n').collect();
        assert!((1..=lines.len()).contains(&line), "{said}");
        assert!((1..=lines[line - 1].chars().count() + 1).contains(&column), "{said}");
    }
}

/// A second reading of a number with its unit: from its end, in more digits than needed.
fn read(text: &str, units: &[(&str, u128)]) -> Option<u64> {
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    let number = number.trim_end();
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = number.bytes().try_fold(0_u128, |n, b| n.checked_mul(10)?.checked_add(u128::from(b - b'0')))?;
    u64::try_from(value.checked_mul(*factor)?).ok()
}

/// Two readers of sizes and times agree, and what was read is written so that it is read again.
#[test]
fn fuzz_sizes() {
    let good = ["128MiB", "0B", "1 KiB", "18446744073709551615B", "17179869183GiB", "30s", "500ms", "1h", "5m"];
    let words = [
        "0",
        "9",
        "1",
        "B",
        "KiB",
        "MiB",
        "GiB",
        "ms",
        "s",
        "m",
        "h",
        " ",
        "-",
        ".",
        "１",
        "\u{a0}",
        "k",
        "kB",
        "18446744073709551616",
    ];
    let sizes = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1)];
    let times = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    target!(5000, |input: &Input| {
        let text = input.text(&good, &words);
        let size = text.parse::<Size>();
        assert_eq!(size.as_ref().ok().map(|s| s.0.0), read(&text, &sizes), "{text:?}");
        let time = text.parse::<Interval>();
        assert_eq!(time.as_ref().ok().map(|t| t.0.0), read(&text, &times), "{text:?}");
        if let Ok(size) = size {
            assert_eq!(format!("{}B", size.0.0).parse(), Ok(size));
        }
        for said in [text.parse::<Size>().err(), text.parse::<Interval>().err()].into_iter().flatten() {
            assert!(said.len() < 1024 && said.chars().all(|c| !c.is_control()), "{said:?}");
        }
    });
}
