//! The client verbs, one file per group. Each turns arguments into calls of the admin API and prints
//! the answer; none keeps state of its own.

pub(crate) mod apps;
pub(crate) mod debug;
pub(crate) mod env;
pub(crate) mod events;
pub(crate) mod hosts;
pub(crate) mod login;
pub(crate) mod logs;
pub(crate) mod policy;
pub(crate) mod push;
pub(crate) mod revisions;
pub(crate) mod routes;
pub(crate) mod services;
pub(crate) mod shell;
pub(crate) mod tokens;
pub(crate) mod usage;

use std::future::Future;
use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context as _, Result};
use marcato_api::{ApiResult, PageOf};

use crate::failure::{Code, Failure};

/// Entries per call of a listing.
const PAGE: u32 = 200;

/// All pages of a listing, at most `most` entries.
async fn all<T, F, R>(most: usize, mut page: F) -> Result<Vec<T>>
where
    F: FnMut(Option<String>, u32) -> R,
    R: Future<Output = ApiResult<PageOf<T>>>,
{
    let mut items = Vec::new();
    let mut after = None;
    while items.len() < most {
        let limit = PAGE.min((most - items.len()) as u32);
        let next = page(after.take(), limit).await?;
        let empty = next.items.is_empty();
        items.extend(next.items);
        match next.next {
            Some(more) if !empty => after = Some(more),
            _ => break,
        }
    }
    items.truncate(most);
    Ok(items)
}

/// A secret from a file, or from a prompt without echo, or from stdin when that is not a terminal;
/// never from an argument. One line end at its end is dropped.
fn secret(from_file: Option<&Path>, prompt: &str) -> Result<String> {
    /// Longest secret that is read.
    const LIMIT_BYTES: u64 = 64 << 10;
    let mut text = String::new();
    match from_file {
        Some(file) => {
            let open = std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
            open.take(LIMIT_BYTES + 1)
                .read_to_string(&mut text)
                .with_context(|| format!("cannot read {}", file.display()))?;
        }
        None if std::io::stdin().is_terminal() => return Ok(rpassword::prompt_password(prompt)?),
        None => {
            std::io::stdin().take(LIMIT_BYTES + 1).read_to_string(&mut text).context("cannot read stdin")?;
        }
    }
    if text.len() as u64 > LIMIT_BYTES {
        return Err(Failure::new(Code::Usage, "the value is longer than 64 KiB").into());
    }
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}
