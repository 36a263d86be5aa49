//! The access service over SQLite: subjects, secure keys, rights, history.
//!
//! Every change writes its line of history in its own transaction. Semantics and limits: WIT
//! `marcato:access` and `marcato_api::AccessRequest`.

mod history;
mod keys;
mod rights;
mod subjects;
mod validate;

use jiff::Timestamp;
use marcato_api::{AccessError, AccessRequest, AccessResponse, ServiceKind};
use rusqlite::Connection;
use rusqlite::types::Type;

use super::database::Layout;
use super::error::Fault;
use super::worker::{Engine, Failure};

/// The engine of kind access.
pub(super) struct Access;

type Outcome<T> = Result<T, Failure<AccessError>>;

impl Engine for Access {
    type Request = AccessRequest;
    type Response = AccessResponse;
    type Error = AccessError;
    const LAYOUT: Layout = Layout {
        kind: ServiceKind::Access,
        application_id: i32::from_be_bytes(*b"MrAc"),
        migrations: &[include_str!("schema_1.sql")],
    };

    fn run(c: &Connection, request: &AccessRequest) -> Outcome<AccessResponse> {
        use AccessRequest as R;
        match request {
            R::AddSubject { actor, id, kind, name, description, permission } => {
                let new = subjects::New { id, kind: *kind, name, description, permission: *permission };
                subjects::add(c, actor, &new)
            }
            R::UpdateSubject { actor, id, kind, name, description, permission, expected_version } => {
                let change = subjects::Update {
                    kind: *kind,
                    name: name.as_deref(),
                    description: description.as_deref(),
                    permission: *permission,
                    expected_version: *expected_version,
                };
                subjects::update(c, actor, id, &change)
            }
            R::RemoveSubject { actor, id } => subjects::remove(c, actor, id),
            R::GetSubject { id } => subjects::get(c, id).map(AccessResponse::Subject),
            R::ListSubjects { kind, search, page } => subjects::list(c, *kind, search.as_deref(), *page),
            R::IssueKey { actor, id } => keys::issue(c, actor, id),
            R::RevokeKey { actor, id } => keys::revoke(c, actor, id),
            R::VerifyKey { actor, id, key } => keys::verify(c, actor, id, key),
            R::Grant { actor, id, resource, permission } => rights::grant(c, actor, id, resource, *permission),
            R::Withdraw { actor, id, resource } => rights::withdraw(c, actor, id, resource),
            R::ListRights { id, page } => rights::list(c, id, *page),
            R::Check { id, resource } => rights::check(c, id, resource),
            R::Record { actor, change, subject, detail } => {
                validate::actor(actor)?;
                subject.as_deref().map_or(Ok(()), validate::id)?;
                validate::detail(detail)?;
                history::add(c, actor, *change, subject.as_deref(), detail)?;
                Ok(AccessResponse::Done)
            }
            R::History { subject, page } => history::list(c, subject.as_deref(), *page),
        }
    }

    fn error(fault: Fault) -> AccessError {
        match fault {
            Fault::DiskFull => AccessError::DiskFull,
            Fault::Corrupt(reason) => AccessError::Corrupt(reason),
            Fault::WrongKind => AccessError::Corrupt("the database is of another kind".to_owned()),
            Fault::Unavailable(reason) => AccessError::Unavailable(reason),
        }
    }

    fn gone() -> AccessError {
        AccessError::NoSuchBinding
    }
}

/// The clock at the precision that is stored, so that an answer and a later look-up agree.
fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// A stored time; one that no clock gives is damage.
fn timestamp(ms: i64) -> rusqlite::Result<Timestamp> {
    Timestamp::from_millisecond(ms).map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, Type::Integer, e.into()))
}

fn count(number: i64) -> rusqlite::Result<u64> {
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(0, number))
}

/// A stored word that is none of ours is damage.
fn unknown_word(word: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, format!("unknown word {word:?}").into())
}
