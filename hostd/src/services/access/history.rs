//! The history: lines are added in the transaction of what they tell of, and never changed (the
//! database refuses it).

use marcato_api::{AccessResponse, Change, HistoryEntry, Page, PageRequest};
use rusqlite::Connection;

use super::{Outcome, count, now_ms, timestamp, unknown_word, validate};

const WORDS: [(Change, &str); 11] = [
    (Change::SubjectAdded, "subject_added"),
    (Change::SubjectChanged, "subject_changed"),
    (Change::SubjectRemoved, "subject_removed"),
    (Change::KeyIssued, "key_issued"),
    (Change::KeyRevoked, "key_revoked"),
    (Change::KeyVerified, "key_verified"),
    (Change::RightGranted, "right_granted"),
    (Change::RightWithdrawn, "right_withdrawn"),
    (Change::Viewed, "viewed"),
    (Change::Refused, "refused"),
    (Change::Session, "session"),
];

fn word(change: Change) -> &'static str {
    WORDS.iter().find(|(c, _)| *c == change).map_or("unknown", |(_, word)| word)
}

pub(super) fn add(
    c: &Connection,
    actor: &str,
    change: Change,
    subject: Option<&str>,
    detail: &str,
) -> rusqlite::Result<()> {
    c.prepare_cached("INSERT INTO history (at, actor, change, subject, detail) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute((now_ms(), actor, word(change), subject, detail))?;
    Ok(())
}

pub(super) fn list(c: &Connection, subject: Option<&str>, page: PageRequest) -> Outcome<AccessResponse> {
    let (limit, offset) = validate::page(page)?;
    subject.map_or(Ok(()), validate::id)?;
    let total: i64 = match subject {
        None => c.prepare_cached("SELECT count(*) FROM history")?.query_row([], |row| row.get(0))?,
        Some(id) => {
            c.prepare_cached("SELECT count(*) FROM history WHERE subject = ?1")?.query_row([id], |row| row.get(0))?
        }
    };
    let which = if subject.is_some() { "subject = ?1" } else { "?1 IS NULL" };
    let items = c
        .prepare_cached(&format!(
            "SELECT sequence, at, actor, change, subject, detail FROM history
             WHERE {which} ORDER BY sequence DESC LIMIT ?2 OFFSET ?3"
        ))?
        .query_map((subject, limit, offset), |row| {
            let change: String = row.get(3)?;
            Ok(HistoryEntry {
                sequence: count(row.get(0)?)?,
                at: timestamp(row.get(1)?)?,
                actor: row.get(2)?,
                change: WORDS
                    .iter()
                    .find(|(_, word)| *word == change)
                    .map(|(c, _)| *c)
                    .ok_or_else(|| unknown_word(&change))?,
                subject: row.get(4)?,
                detail: row.get(5)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(AccessResponse::History(Page { items, total: count(total)? }))
}
