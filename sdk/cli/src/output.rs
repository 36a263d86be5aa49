//! What a person or a program gets to see: tables, JSON, notes and progress.
//!
//! Results go to stdout; notes, prompts and progress go to stderr, and progress only when it is a
//! terminal. A closed pipe ends the program quietly. Text that came from elsewhere loses its control characters
//! before a terminal sees it.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON value (or one per line, for streams) instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a line. Errors: stdout is closed.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.as_ref())?;
        out.flush()?;
        Ok(())
    }

    /// Prints a value as JSON: indented for a terminal, else on one line.
    pub(crate) fn value<T: Serialize>(self, value: &T) -> Result<()> {
        let text = if io::stdout().is_terminal() {
            serde_json::to_string_pretty(value)?
        } else {
            serde_json::to_string(value)?
        };
        self.line(text)
    }

    /// Prints the value with `--json`, else the sentence.
    pub(crate) fn done<T: Serialize>(self, value: &T, sentence: impl AsRef<str>) -> Result<()> {
        if self.json { self.value(value) } else { self.line(sentence) }
    }

    /// Prints rows under a head; `empty` when there is none.
    pub(crate) fn table(self, head: &[&str], rows: Vec<Vec<String>>, empty: &str) -> Result<()> {
        if rows.is_empty() {
            self.note(empty);
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(head);
        for row in rows {
            table.add_row(row.into_iter().map(|cell| clean(&cell).into_owned()));
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        self.line(table.lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>().join("\n"))
    }

    /// Tells something beside the result. Nobody reads it when stderr is closed, so errors are let go.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        let _ = writeln!(io::stderr(), "{}", text.as_ref());
    }

    /// A bar for an upload of `bytes`; hidden unless stderr is a terminal.
    pub(crate) fn upload_bar(self, bytes: u64, what: String) -> ProgressBar {
        let bar = if self.shows_progress() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(what)
    }

    /// A spinner for what has no length; hidden unless stderr is a terminal.
    pub(crate) fn spinner(self, what: impl Into<Cow<'static, str>>) -> ProgressBar {
        if !self.shows_progress() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }

    fn shows_progress(self) -> bool {
        !self.json && io::stderr().is_terminal()
    }
}

/// The text without control characters (tabs stay): what others wrote must not steer the terminal.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(|c| c.is_control() && c != '\t') {
        Cow::Owned(text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// A time in the reader's zone, to the second.
pub(crate) fn time(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A value, or a dash.
pub(crate) fn dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| v.to_string())
}

/// Asks a yes-or-no question. Errors: not a terminal, or the answer is no.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<()> {
    use crate::failure::{Code, Failure};
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Code::Usage, format!("{question} Nobody is there to ask"))
            .next("the same with --yes")
            .into());
    }
    let mut err = io::stderr().lock();
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(Failure::new(Code::Failed, "nothing was done").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\tc\r\n"), "a\u{fffd}[2Jb\tc\u{fffd}\u{fffd}");
        assert!(matches!(clean("Grüezi"), Cow::Borrowed(_)));
    }
}
