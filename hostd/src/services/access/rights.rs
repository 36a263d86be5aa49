//! Rights per resource: grant, withdraw, list, and the decision (`check`).

use marcato_api::{AccessResponse, AccessRight, Change, Page, PageRequest, Permission};
use rusqlite::{Connection, OptionalExtension};

use super::{Outcome, count, history, now_ms, subjects, timestamp, validate};

/// The resource that stands for all that have no right of their own.
const ANY: &str = "*";

pub(super) fn grant(
    c: &Connection,
    actor: &str,
    id: &str,
    resource: &str,
    permission: Permission,
) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    validate::resource(resource)?;
    subjects::get(c, id)?;
    c.prepare_cached(
        "INSERT INTO rights (subject, resource, may_read, may_write, granted_by, granted_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT (subject, resource) DO UPDATE SET may_read = excluded.may_read,
            may_write = excluded.may_write, granted_by = excluded.granted_by, granted_at = excluded.granted_at",
    )?
    .execute((id, resource, permission.read, permission.write, actor, now_ms()))?;
    let detail = format!("{} on {resource}", subjects::rights_text(permission));
    history::add(c, actor, Change::RightGranted, Some(id), &detail)?;
    Ok(AccessResponse::Done)
}

pub(super) fn withdraw(c: &Connection, actor: &str, id: &str, resource: &str) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    validate::resource(resource)?;
    subjects::get(c, id)?;
    let removed =
        c.prepare_cached("DELETE FROM rights WHERE subject = ?1 AND resource = ?2")?.execute([id, resource])?;
    if removed > 0 {
        history::add(c, actor, Change::RightWithdrawn, Some(id), &format!("on {resource}"))?;
    }
    Ok(AccessResponse::Done)
}

pub(super) fn list(c: &Connection, id: &str, page: PageRequest) -> Outcome<AccessResponse> {
    let (limit, offset) = validate::page(page)?;
    subjects::get(c, id)?;
    let total: i64 =
        c.prepare_cached("SELECT count(*) FROM rights WHERE subject = ?1")?.query_row([id], |row| row.get(0))?;
    let items = c
        .prepare_cached(
            "SELECT subject, resource, may_read, may_write, granted_by, granted_at FROM rights
             WHERE subject = ?1 ORDER BY resource LIMIT ?2 OFFSET ?3",
        )?
        .query_map((id, limit, offset), |row| {
            Ok(AccessRight {
                subject: row.get(0)?,
                resource: row.get(1)?,
                permission: Permission { read: row.get(2)?, write: row.get(3)? },
                granted_by: row.get(4)?,
                granted_at: timestamp(row.get(5)?)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    Ok(AccessResponse::Rights(Page { items, total: count(total)? }))
}

/// The right on the resource, else that on `*`, else the subject's own permission.
pub(super) fn check(c: &Connection, id: &str, resource: &str) -> Outcome<AccessResponse> {
    validate::resource(resource)?;
    let own = subjects::get(c, id)?.permission;
    let right = |on: &str| {
        c.prepare_cached("SELECT may_read, may_write FROM rights WHERE subject = ?1 AND resource = ?2")?
            .query_row([id, on], |row| Ok(Permission { read: row.get(0)?, write: row.get(1)? }))
            .optional()
    };
    let allowed = match right(resource)? {
        Some(permission) => permission,
        None => right(ANY)?.unwrap_or(own),
    };
    Ok(AccessResponse::Allowed(allowed))
}
