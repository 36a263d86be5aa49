//! Fuzz target: the usage ledger's file, damaged, and with numbers in it that we never write.

use marcato_fuzz::{Edits, target};

use super::*;

const WORDS: &[&[u8]] =
    &[b"SQLite format 3\0", b"hours", b"mrcu", b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"CREATE TABLE", b"\0\0\0\0"];

fn delta(n: u64) -> UsageDelta {
    UsageDelta { requests: n, cpu_us: n, memory_byte_ms: n, bytes_in: n, bytes_out: n }
}

fn filled(path: &Path) -> Vec<u8> {
    let ledger = UsageLedger::open(path).unwrap();
    for (n, app) in ["a", "b", "c"].iter().enumerate() {
        let at = Timestamp::from_second(3_600 * (n as i64 + 400_000)).unwrap();
        ledger.record(&app.parse().unwrap(), &"acme".parse().unwrap(), delta(9), at);
    }
    ledger.flush().unwrap();
    drop(ledger);
    std::fs::read(path).unwrap()
}

/// Opens it, reads it page by page, adds to it: each works, or says why not. Changes only ever go up.
fn use_all(path: &Path) -> Result<(), UsageError> {
    let ledger = UsageLedger::open(path)?;
    let mut after = UsageCursor::START;
    for _ in 0..8 {
        let page = ledger.page(after, 2)?;
        assert!(page.items.len() <= 2);
        if !page.more {
            break;
        }
        assert!(page.next.change > after.change || after.ledger != page.next.ledger, "the next page is a later one");
        after = page.next;
    }
    let at = Timestamp::from_second(3_600 * 400_000).unwrap();
    ledger.record(&"a".parse().unwrap(), &"acme".parse().unwrap(), delta(u64::MAX), at);
    ledger.flush()?;
    ledger.forget_before(3_600 * 400_001)?;
    ledger.page(UsageCursor::START, PAGE).map(drop)
}

/// Damage is an error, never a panic or a loop.
#[test]
fn fuzz_usage_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usage.sqlite");
    let good = filled(&path);
    target!(150, |edits: &Edits| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        std::fs::write(&path, edits.apply(&good, WORDS)).unwrap();
        if let Err(error) = use_all(&path) {
            assert!(!matches!(error, UsageError::File { .. }), "{error}");
        }
    });
}

/// Numbers at the edges of SQLite's range are added to without a panic, and never go below zero.
#[test]
fn fuzz_usage_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usage.sqlite");
    filled(&path);
    target!(60, |numbers: &(i64, i64, i64, u8)| {
        let (change, total, hour, far) = *numbers;
        // Half of them at the very end.
        let edge = |n: i64, bit: u8| if far & bit == 0 { n } else { i64::MAX - n.unsigned_abs() as i64 % 3 };
        let file = Connection::open(&path).unwrap();
        file.execute("DELETE FROM hours WHERE app NOT IN ('a', 'b', 'c')", []).unwrap();
        file.execute("UPDATE ledger SET change = ?1", [edge(change, 1)]).unwrap();
        file.execute("UPDATE hours SET requests = ?1, bytes_in = ?1 WHERE app = 'a'", [edge(total, 2)]).unwrap();
        file.execute("UPDATE OR REPLACE hours SET hour = ?1 WHERE app = 'b'", [edge(hour, 4)]).unwrap();
        file.close().unwrap();
        if let Err(error) = use_all(&path) {
            assert!(matches!(error, UsageError::Database(_) | UsageError::Damaged(_)), "{error}");
        }
    });
}
