//! From text to a checked manifest, with errors that name line and column and suggest the right word.

use std::path::PathBuf;

use super::Manifest;

/// Longest message; the list of the known fields fits.
const MESSAGE_CHARS: usize = 1000;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// The file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something in it is wrong.
    #[error("{place}: {message}")]
    Wrong {
        /// `FILE:LINE:COLUMN`, or the file alone.
        place: String,
        /// What, and what to write instead.
        message: String,
    },
}

pub(super) fn parse(text: &str, file: &str) -> Result<Manifest, ManifestError> {
    let at = |offset: Option<usize>, message: String| ManifestError::Wrong {
        place: match offset {
            Some(offset) => {
                let (line, column) = position(text, offset);
                format!("{file}:{line}:{column}")
            }
            None => file.to_owned(),
        },
        message: cut(message),
    };
    let wrong = |path: &str, e: &toml::de::Error| at(e.span().map(|s| s.start), named(path, &explain(e.message())));
    let document = toml::Deserializer::parse(text).map_err(|e| wrong("", &e))?;
    let manifest: Manifest =
        serde_path_to_error::deserialize(document).map_err(|e| wrong(&e.path().to_string(), e.inner()))?;
    match check(&manifest) {
        Ok(()) => Ok(manifest),
        Err((path, message)) => Err(at(find(text, path), message)),
    }
}

/// A message that quotes a value of any length, cut.
fn cut(message: String) -> String {
    match message.char_indices().nth(MESSAGE_CHARS) {
        Some((at, _)) => format!("{} …", &message[..at]),
        None => message,
    }
}

/// A message with the path of the field that it is about, as `limits.memory`; a message that names the field itself
/// stays as it is.
fn named(path: &str, message: &str) -> String {
    let path: String = path.chars().filter(|c| !c.is_control()).take(120).collect();
    if path.is_empty() || path == "." || message.starts_with("unknown field") {
        return message.to_owned();
    }
    format!("{path}: {message}")
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Where the key at `path` stands; `None` when it does not (a default is at fault).
fn find(text: &str, path: &str) -> Option<usize> {
    let root = toml::de::DeTable::parse(text).ok()?;
    let mut table = root.get_ref();
    let mut offset = None;
    for part in path.split('.') {
        let (key, value) = table.iter().find(|(k, _)| k.get_ref() == part)?;
        offset = Some(key.span().start);
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    offset
}

/// serde's words for an unknown field list every field; a person wants the one that was meant.
fn explain(message: &str) -> String {
    let first = message.lines().next().unwrap_or(message);
    let mut words = first.split('`').skip(1).step_by(2);
    if !first.starts_with("unknown field") && !first.starts_with("unknown variant") {
        return first.to_owned();
    }
    let Some(unknown) = words.next() else { return first.to_owned() };
    let known: Vec<&str> = words.collect();
    let what = if first.starts_with("unknown field") { "field" } else { "value" };
    let nearest = known
        .iter()
        .map(|k| (strsim::jaro_winkler(&unknown.to_lowercase(), k), *k))
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, meant)) => format!("unknown {what} {unknown:?}; did you mean {meant:?}?"),
        None => format!("unknown {what} {unknown:?}; known here: {}", known.join(", ")),
    }
}

/// What types cannot say. Errors: the path of the key at fault, and why.
fn check(m: &Manifest) -> Result<(), (&'static str, String)> {
    if m.component.as_os_str().is_empty() {
        return Err(("component", "the component's file is missing".into()));
    }
    if m.route.is_some() && m.routes.is_some() {
        return Err(("routes", "route and routes exclude each other; keep one".into()));
    }
    if m.routes.as_ref().is_some_and(Vec::is_empty) {
        return Err(("routes", "an empty list; leave it away to get NAME.DOMAIN".into()));
    }
    if m.instances.is_some_and(|n| n > 100) {
        return Err(("instances", "more than 100".into()));
    }
    let mut names = std::collections::BTreeSet::new();
    for binding in &m.bindings {
        if binding.name.is_empty() || binding.name.len() > 63 {
            return Err(("bindings", format!("binding name {:?}: expected 1 to 63 characters", binding.name)));
        }
        if !names.insert(&binding.name) {
            return Err(("bindings", format!("two bindings are named {:?}", binding.name)));
        }
    }
    for entry in &m.allowed_outbound_hosts {
        marcato_api::OutboundHost::parse(entry).map_err(|why| ("allowed_outbound_hosts", why))?;
    }
    let mut config = m.config();
    for (key, value) in &m.env {
        let text = match value {
            super::EnvValue::Text(text) => text.clone(),
            super::EnvValue::Generate(bytes) => "0".repeat(bytes * 2),
        };
        config.env.insert(key.clone(), text);
    }
    config.validate().map_err(|e| {
        // The API counts in bytes and milliseconds and says so in its names; the manifest has units.
        let path = match e.field {
            "queue_timeout_ms" => "queue_timeout",
            "limits.memory_bytes" => "limits.memory",
            "limits.instance_memory_bytes" => "limits.instance_memory",
            "limits.time_ms" => "limits.time",
            "limits.cpu_ms" => "limits.cpu",
            "limits.request_body_bytes" => "limits.request_body",
            "limits.response_body_bytes" => "limits.response_body",
            "limits.first_byte_ms" => "limits.first_byte",
            "limits.idle_ms" => "limits.idle",
            "limits.buffer_bytes" => "limits.buffer",
            "limits.outbound_bytes" => "limits.outbound",
            "env (entries)" | "env (bytes of an entry; a name without '=')" => "env",
            "bindings (entries)" => "bindings",
            "allowed_outbound_hosts (entries)" => "allowed_outbound_hosts",
            "placement.require (entries)" | "placement.require (bytes of a name or value)" => "placement.require",
            "placement.prefer (entries)" | "placement.prefer (bytes of a name or value)" => "placement.prefer",
            "placement.apart_from (entries)" => "placement.apart_from",
            other => other,
        };
        let show = |n: u64| match e.field {
            f if f.ends_with("_bytes") => marcato_api::Bytes(n).to_string(),
            f if f.ends_with("_ms") => marcato_api::Millis(n).to_string(),
            _ => n.to_string(),
        };
        let message = if path == "env" {
            e.to_string()
        } else {
            format!("{path}: {} is not within {} to {}", show(e.value), show(e.min), show(e.max))
        };
        (path, message)
    })
}
