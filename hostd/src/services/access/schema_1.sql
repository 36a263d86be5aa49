-- Version 1. Released migrations are never changed; a new version is a new file.
CREATE TABLE subjects (
    id TEXT PRIMARY KEY,
    -- The id with its numbers padded: text order of this is the order that people expect.
    sort_key TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    -- Lower-case id, name and description, for the search.
    search_text TEXT NOT NULL,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    key_hash BLOB,
    key_salt BLOB,
    key_issued_at INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX subjects_in_order ON subjects (sort_key, id);

CREATE TABLE rights (
    subject TEXT NOT NULL REFERENCES subjects (id) ON DELETE CASCADE,
    resource TEXT NOT NULL,
    may_read INTEGER NOT NULL,
    may_write INTEGER NOT NULL,
    granted_by TEXT NOT NULL,
    granted_at INTEGER NOT NULL,
    PRIMARY KEY (subject, resource)
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    change TEXT NOT NULL,
    -- No reference: the history outlives its subject.
    subject TEXT,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX history_of_subject ON history (subject, sequence);
CREATE TRIGGER history_stays BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
CREATE TRIGGER history_is_fixed BEFORE UPDATE ON history BEGIN SELECT RAISE(ABORT, 'history is append-only'); END;
