//! Subjects: add, change, remove, look up, list in numeric-aware order, search.

use marcato_api::{AccessError, AccessResponse, Change, Page, PageRequest, Permission, Subject, SubjectKind};
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::{Outcome, count, history, now_ms, timestamp, unknown_word, validate};
use crate::services::worker::Failure;

const COLUMNS: &str = "id, kind, name, description, may_read, may_write, key_hash, key_salt, key_issued_at, \
                       created_at, updated_at, version";

/// What a new subject is made of.
pub(super) struct New<'a> {
    pub(super) id: &'a str,
    pub(super) kind: SubjectKind,
    pub(super) name: &'a str,
    pub(super) description: &'a str,
    pub(super) permission: Permission,
}

/// What changes; `None` leaves a field.
pub(super) struct Update<'a> {
    pub(super) kind: Option<SubjectKind>,
    pub(super) name: Option<&'a str>,
    pub(super) description: Option<&'a str>,
    pub(super) permission: Option<Permission>,
    pub(super) expected_version: Option<u64>,
}

pub(super) fn add(c: &Connection, actor: &str, new: &New<'_>) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    validate::id(new.id)?;
    validate::name(new.name)?;
    validate::description(new.description)?;
    let at = now_ms();
    let inserted = c
        .prepare_cached(
            "INSERT INTO subjects (id, sort_key, kind, name, description, search_text, may_read, may_write,
                created_at, updated_at, version)
             VALUES (:id, :sort_key, :kind, :name, :description, :search_text, :read, :write, :at, :at, 1)
             ON CONFLICT (id) DO NOTHING",
        )?
        .execute(named_params! {
            ":id": new.id,
            ":sort_key": sort_key(new.id),
            ":kind": kind_word(new.kind),
            ":name": new.name,
            ":description": new.description,
            ":search_text": search_text(new.id, new.name, new.description),
            ":read": new.permission.read,
            ":write": new.permission.write,
            ":at": at,
        })?;
    if inserted == 0 {
        return Err(Failure::Answer(AccessError::Conflict(format!("the id {} is taken", new.id))));
    }
    let detail = format!("{} with {}", kind_word(new.kind), rights_text(new.permission));
    history::add(c, actor, Change::SubjectAdded, Some(new.id), &detail)?;
    get(c, new.id).map(AccessResponse::Subject)
}

pub(super) fn update(c: &Connection, actor: &str, id: &str, update: &Update<'_>) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    update.name.map_or(Ok(()), validate::name)?;
    update.description.map_or(Ok(()), validate::description)?;
    let before = get(c, id)?;
    if let Some(expected) = update.expected_version
        && expected != before.version
    {
        return Err(Failure::Answer(AccessError::Conflict(format!(
            "version {expected} was expected, it is {}",
            before.version
        ))));
    }
    let kind = update.kind.unwrap_or(before.kind);
    let name = update.name.unwrap_or(&before.name);
    let description = update.description.unwrap_or(&before.description);
    let permission = update.permission.unwrap_or(before.permission);
    let changes = describe(&before, kind, name, description, permission);
    if changes.is_empty() {
        return Ok(AccessResponse::Subject(before));
    }
    c.prepare_cached(
        "UPDATE subjects SET kind = :kind, name = :name, description = :description, search_text = :search_text,
            may_read = :read, may_write = :write, updated_at = :at, version = version + 1
         WHERE id = :id",
    )?
    .execute(named_params! {
        ":id": id,
        ":kind": kind_word(kind),
        ":name": name,
        ":description": description,
        ":search_text": search_text(id, name, description),
        ":read": permission.read,
        ":write": permission.write,
        ":at": now_ms(),
    })?;
    history::add(c, actor, Change::SubjectChanged, Some(id), &changes.join("; "))?;
    get(c, id).map(AccessResponse::Subject)
}

/// What changes, in words, for the history.
fn describe(before: &Subject, kind: SubjectKind, name: &str, description: &str, permission: Permission) -> Vec<String> {
    let mut changes = Vec::new();
    if kind != before.kind {
        changes.push(format!("kind from {} to {}", kind_word(before.kind), kind_word(kind)));
    }
    if name != before.name {
        changes.push(format!("name from {:?} to {name:?}", before.name));
    }
    if description != before.description {
        changes.push("description".to_owned());
    }
    if permission != before.permission {
        changes.push(format!("right from {} to {}", rights_text(before.permission), rights_text(permission)));
    }
    changes
}

pub(super) fn remove(c: &Connection, actor: &str, id: &str) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    let before = get(c, id)?;
    c.prepare_cached("DELETE FROM subjects WHERE id = ?1")?.execute([id])?;
    let detail = format!("{} {:?}, with its key and rights", kind_word(before.kind), before.name);
    history::add(c, actor, Change::SubjectRemoved, Some(id), &detail)?;
    Ok(AccessResponse::Done)
}

pub(super) fn get(c: &Connection, id: &str) -> Outcome<Subject> {
    validate::id(id)?;
    c.prepare_cached(&format!("SELECT {COLUMNS} FROM subjects WHERE id = ?1"))?
        .query_row([id], read)
        .optional()?
        .ok_or_else(|| Failure::Answer(AccessError::NotFound(id.to_owned())))
}

pub(super) fn list(
    c: &Connection,
    kind: Option<SubjectKind>,
    search: Option<&str>,
    page: PageRequest,
) -> Outcome<AccessResponse> {
    let (limit, offset) = validate::page(page)?;
    let search = search.unwrap_or("");
    validate::search(search)?;
    let needle = search.trim().to_lowercase();
    let kind = kind.map(kind_word);
    // instr compares bytes: nothing in the text is a pattern, so nothing needs an escape.
    const WHICH: &str = "(?1 IS NULL OR kind = ?1) AND (?2 = '' OR instr(search_text, ?2) > 0)";
    let total: i64 = c
        .prepare_cached(&format!("SELECT count(*) FROM subjects WHERE {WHICH}"))?
        .query_row((kind, &needle), |row| row.get(0))?;
    let items = c
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM subjects WHERE {WHICH} ORDER BY sort_key, id LIMIT ?3 OFFSET ?4"
        ))?
        .query_map((kind, &needle, limit, offset), read)?
        .collect::<Result<_, _>>()?;
    Ok(AccessResponse::Subjects(Page { items, total: count(total)? }))
}

fn read(row: &Row<'_>) -> rusqlite::Result<Subject> {
    let kind: String = row.get(1)?;
    let hash: Option<Vec<u8>> = row.get(6)?;
    let salt: Option<Vec<u8>> = row.get(7)?;
    Ok(Subject {
        id: row.get(0)?,
        kind: parse_kind(&kind).ok_or_else(|| unknown_word(&kind))?,
        name: row.get(2)?,
        description: row.get(3)?,
        permission: Permission { read: row.get(4)?, write: row.get(5)? },
        key_hash: hash.map(hex::encode),
        key_salt: salt.map(hex::encode),
        key_issued_at: row.get::<_, Option<i64>>(8)?.map(timestamp).transpose()?,
        created_at: timestamp(row.get(9)?)?,
        updated_at: timestamp(row.get(10)?)?,
        version: count(row.get(11)?)?,
    })
}

fn kind_word(kind: SubjectKind) -> &'static str {
    match kind {
        SubjectKind::Patient => "patient",
        SubjectKind::Doctor => "doctor",
        SubjectKind::Staff => "staff",
    }
}

fn parse_kind(word: &str) -> Option<SubjectKind> {
    [SubjectKind::Patient, SubjectKind::Doctor, SubjectKind::Staff].into_iter().find(|k| kind_word(*k) == word)
}

pub(super) fn rights_text(permission: Permission) -> &'static str {
    match (permission.read, permission.write) {
        (true, true) => "read and write",
        (true, false) => "read",
        (false, true) => "write",
        (false, false) => "no right",
    }
}

/// Fields are apart by a character that no field may have, so no hit spans two of them.
fn search_text(id: &str, name: &str, description: &str) -> String {
    format!("{id}\u{1}{name}\u{1}{description}").to_lowercase()
}

/// An id with each number as its count of digits and the digits: 9 < 10, a9 < a10, 1001 < a.
pub(super) fn sort_key(id: &str) -> String {
    let mut key = String::with_capacity(id.len() + 8);
    let mut rest = id;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        if digits {
            let number = run.trim_start_matches('0');
            key.push_str(&format!("{:02}{number}", number.len()));
        } else {
            key.push_str(run);
        }
        rest = tail;
    }
    key
}
