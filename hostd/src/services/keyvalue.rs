//! The key-value service over SQLite. Semantics: WIT `wasi:keyvalue@0.2.0-draft`, with batches that
//! are all or none, and reads that see every acknowledged write.

use marcato_api::{KeyValueError, KeyValueRequest, KeyValueResponse, ServiceKind};
use rusqlite::{Connection, OptionalExtension};

use super::database::Layout;
use super::error::Fault;
use super::worker::{Engine, Failure};

const KEY_MAX_BYTES: usize = 1024;
const VALUE_MAX_BYTES: usize = 1 << 20;
const BATCH_MAX: usize = 1000;
/// Bytes of one call's keys and values together, in either direction.
const CALL_MAX_BYTES: usize = 16 << 20;

/// The engine of kind keyvalue.
pub(super) struct KeyValue;

impl Engine for KeyValue {
    type Request = KeyValueRequest;
    type Response = KeyValueResponse;
    type Error = KeyValueError;
    const LAYOUT: Layout = Layout {
        kind: ServiceKind::Keyvalue,
        application_id: i32::from_be_bytes(*b"MrKv"),
        // `place` keeps the order of first writing, and is never used again: a cursor stays right.
        migrations: &["CREATE TABLE entries (
            place INTEGER PRIMARY KEY AUTOINCREMENT,
            key TEXT NOT NULL UNIQUE,
            value BLOB NOT NULL
        ) STRICT;"],
    };

    fn run(connection: &Connection, request: &KeyValueRequest) -> Result<KeyValueResponse, Failure<KeyValueError>> {
        use KeyValueRequest as R;
        match request {
            R::Get { key } => {
                check_keys(std::slice::from_ref(key))?;
                Ok(KeyValueResponse::Value(get(connection, key)?))
            }
            R::GetMany { keys } => get_many(connection, keys),
            R::Set { key, value } => {
                check_entry(key, value)?;
                set(connection, key, value)
            }
            R::SetMany { entries } => set_many(connection, entries),
            R::Delete { key } => delete_many(connection, std::slice::from_ref(key)),
            R::DeleteMany { keys } => delete_many(connection, keys),
            R::Exists { key } => {
                check_keys(std::slice::from_ref(key))?;
                let mut found = connection.prepare_cached("SELECT 1 FROM entries WHERE key = ?1")?;
                Ok(KeyValueResponse::Exists(found.exists([key])?))
            }
            R::ListKeys { after } => list(connection, *after),
            R::Increment { key, delta } => increment(connection, key, *delta),
        }
    }

    fn error(fault: Fault) -> KeyValueError {
        match fault {
            Fault::DiskFull => KeyValueError::DiskFull,
            Fault::Corrupt(reason) => KeyValueError::Corrupt(reason),
            Fault::WrongKind => KeyValueError::Corrupt("the database is of another kind".to_owned()),
            Fault::Unavailable(reason) => KeyValueError::Unavailable(reason),
        }
    }

    fn gone() -> KeyValueError {
        KeyValueError::NoSuchStore
    }
}

type Outcome = Result<KeyValueResponse, Failure<KeyValueError>>;

fn too_large<T>(what: impl Into<String>) -> Result<T, Failure<KeyValueError>> {
    Err(Failure::Answer(KeyValueError::TooLarge(what.into())))
}

fn check_keys(keys: &[String]) -> Result<(), Failure<KeyValueError>> {
    if keys.len() > BATCH_MAX {
        return too_large(format!("{} keys; at most {BATCH_MAX}", keys.len()));
    }
    match keys.iter().find(|k| !(1..=KEY_MAX_BYTES).contains(&k.len())) {
        Some(key) => too_large(format!("a key of {} bytes; 1 to {KEY_MAX_BYTES}", key.len())),
        None => Ok(()),
    }
}

fn check_entry(key: &str, value: &[u8]) -> Result<(), Failure<KeyValueError>> {
    if !(1..=KEY_MAX_BYTES).contains(&key.len()) {
        return too_large(format!("a key of {} bytes; 1 to {KEY_MAX_BYTES}", key.len()));
    }
    if value.len() > VALUE_MAX_BYTES {
        return too_large(format!("a value of {} bytes; at most {VALUE_MAX_BYTES}", value.len()));
    }
    Ok(())
}

fn get(connection: &Connection, key: &str) -> Result<Option<Vec<u8>>, rusqlite::Error> {
    connection.prepare_cached("SELECT value FROM entries WHERE key = ?1")?.query_row([key], |row| row.get(0)).optional()
}

fn get_many(connection: &Connection, keys: &[String]) -> Outcome {
    check_keys(keys)?;
    let mut values = Vec::with_capacity(keys.len());
    let mut bytes = 0;
    for key in keys {
        let value = get(connection, key)?;
        bytes += value.as_ref().map_or(0, Vec::len);
        if bytes > CALL_MAX_BYTES {
            return too_large(format!("an answer of more than {CALL_MAX_BYTES} bytes; ask for fewer keys"));
        }
        values.push((key.clone(), value));
    }
    Ok(KeyValueResponse::Values(values))
}

fn set(connection: &Connection, key: &str, value: &[u8]) -> Outcome {
    connection
        .prepare_cached(
            "INSERT INTO entries (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )?
        .execute((key, value))?;
    Ok(KeyValueResponse::Done)
}

fn set_many(connection: &Connection, entries: &[(String, Vec<u8>)]) -> Outcome {
    if entries.len() > BATCH_MAX {
        return too_large(format!("{} entries; at most {BATCH_MAX}", entries.len()));
    }
    let bytes: usize = entries.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > CALL_MAX_BYTES {
        return too_large(format!("{bytes} bytes in one call; at most {CALL_MAX_BYTES}"));
    }
    entries.iter().try_for_each(|(key, value)| check_entry(key, value))?;
    for (key, value) in entries {
        set(connection, key, value)?;
    }
    Ok(KeyValueResponse::Done)
}

fn delete_many(connection: &Connection, keys: &[String]) -> Outcome {
    check_keys(keys)?;
    for key in keys {
        connection.prepare_cached("DELETE FROM entries WHERE key = ?1")?.execute([key])?;
    }
    Ok(KeyValueResponse::Done)
}

fn list(connection: &Connection, after: Option<u64>) -> Outcome {
    // A cursor that no answer ever gave is past every place.
    let after = after.map_or(0, |a| i64::try_from(a).unwrap_or(i64::MAX));
    let mut rows: Vec<(i64, String)> = connection
        .prepare_cached("SELECT place, key FROM entries WHERE place > ?1 ORDER BY place LIMIT ?2")?
        .query_map((after, BATCH_MAX as i64 + 1), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let more = rows.len() > BATCH_MAX;
    rows.truncate(BATCH_MAX);
    let next = rows.last().filter(|_| more).and_then(|(place, _)| u64::try_from(*place).ok());
    Ok(KeyValueResponse::Keys { keys: rows.into_iter().map(|(_, key)| key).collect(), next })
}

fn increment(connection: &Connection, key: &str, delta: u64) -> Outcome {
    check_entry(key, &[])?;
    let before = match get(connection, key)? {
        None => 0,
        Some(value) => number(&value).ok_or(Failure::Answer(KeyValueError::NotANumber))?,
    };
    let Some(after) = before.checked_add(delta) else {
        return too_large("the number would exceed 2^64 - 1");
    };
    set(connection, key, after.to_string().as_bytes())?;
    Ok(KeyValueResponse::Number(after))
}

/// Decimal digits only: no sign, which `parse` would take.
fn number(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok()
}
