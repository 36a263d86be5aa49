//! docs/limits.md against the code.

use marcato_api::{AppBudget, LimitScope};

use super::*;
use crate::limits::SetBy;

fn scope(scope: LimitScope) -> &'static str {
    match scope {
        LimitScope::Call => "call",
        LimitScope::Request => "request",
        LimitScope::Sandbox => "sandbox",
        LimitScope::Instance => "instance",
        LimitScope::App => "app on host",
        LimitScope::Host => "host",
    }
}

fn default_of(of: Limit) -> String {
    let (app, host) = (AppAccount::new(&AppBudget::default()), HostTotals::new(u32::MAX, Bytes(u64::MAX)));
    let name = of.name();
    match limit(of, &RevisionConfig::default(), &app, &host) {
        None if scope(of.scope()) == "host" => "by the host's options".into(),
        None => "none".into(),
        Some(value) if name.ends_with("_ms") => Millis(value).to_string(),
        Some(value) if of == Limit::LogRate => format!("{}/s", Bytes(value)),
        Some(value) if name.ends_with("_bytes") || of == Limit::LogLine => Bytes(value).to_string(),
        Some(value) => value.to_string(),
    }
}

#[test]
fn the_document_says_what_the_code_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/limits.md");
    let text = std::fs::read_to_string(path).expect("docs/limits.md");
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let told: Vec<String> = rows.iter().map(|row| row[..3].join(" | ") + " | " + row[4]).collect();
    let known: Vec<String> = Limit::ALL
        .iter()
        .map(|of| {
            let by = match of.set_by() {
                SetBy::Manifest => "manifest",
                SetBy::Operator => "operator",
                SetBy::Fixed => "fixed",
            };
            format!("`{}` | {} | {} | {by}", of.name(), scope(of.scope()), default_of(*of))
        })
        .collect();
    assert_eq!(told, known);
    for row in rows {
        assert!(row.len() == 6 && !row[5].is_empty(), "{row:?}");
    }
}
