//! Attacks on what belongs to others: memory that an earlier request left, environment, services.

#![allow(unsafe_code, reason = "it reads all of its linear memory, whoever wrote it")]

use std::sync::Mutex;

use marcato_guest::keyvalue;
use wasip2::http::types::ResponseOutparam;

use crate::{Ask, text};

/// Kept for whoever comes after in the same sandbox.
static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

pub(crate) fn run(ask: &Ask, out: ResponseOutparam) {
    match ask.path.as_str() {
        "/keep" => {
            let secret = ask.request.headers().get("x-secret").into_iter().flatten().collect();
            KEPT.lock().map(|mut kept| kept.push(secret)).ok();
            text(out, "kept\n");
        }
        "/scan" => text(out, format!("found {}\n", scan(&ask.bytes("masked")))),
        "/env" => {
            let all: Vec<String> = std::env::vars().map(|(name, value)| format!("{name}={value}")).collect();
            text(out, format!("{}\n", all.join("\n")));
        }
        "/request" => {
            let fields: Vec<String> = ask
                .request
                .headers()
                .entries()
                .iter()
                .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value)))
                .collect();
            let authority = ask.request.authority().unwrap_or_default();
            text(out, format!("authority {authority}\npath {}\n{}\n", ask.path, fields.join("\n")));
        }
        _ => text(out, format!("{}\n", open(ask))),
    }
}

/// Looks through the whole memory for what is given with each byte turned over, so that the question is
/// not its own answer.
fn scan(masked: &[u8]) -> usize {
    const MASK: u8 = 0x55;
    let size = core::arch::wasm32::memory_size::<0>() * (64 << 10);
    if masked.is_empty() {
        return 0;
    }
    // SAFETY: exactly the memory of this guest, which does nothing else meanwhile; address 0 is left out.
    let memory = unsafe { std::slice::from_raw_parts(1 as *const u8, size - 1) };
    memory.windows(masked.len()).filter(|w| w.iter().zip(masked).all(|(have, want)| *have ^ MASK == *want)).count()
}

/// Opens a store by name, reads or writes a key.
fn open(ask: &Ask) -> String {
    let bucket = match keyvalue::open(&ask.text("store")) {
        Ok(bucket) => bucket,
        Err(error) => return format!("refused {error:?}"),
    };
    let (key, value) = (ask.text("key"), ask.bytes("value"));
    if !value.is_empty() {
        return format!("set {:?}", bucket.set(&key, &value));
    }
    match bucket.get(&key) {
        Ok(Some(found)) => format!("value {}", String::from_utf8_lossy(&found)),
        other => format!("none {other:?}"),
    }
}
