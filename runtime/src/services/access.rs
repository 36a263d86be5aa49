//! `marcato:access/registry`: registers that are bound to the app. Only turns types into types; what a
//! call means is the service's.

use std::sync::Arc;

use marcato_api as api;
use marcato_api::{AccessError, AccessRequest, AccessResponse};
use wasmtime::component::Resource;

use super::bindings::marcato::access::registry::{
    AccessRight, Change, Error, HistoryEntry, HistoryPage, Host, HostRegister, IssuedKey, NewSubject, PageRequest,
    Permission, RightPage, Subject, SubjectKind, SubjectPage, SubjectUpdate,
};
use super::{AccessService, View};

/// An open register.
#[allow(unreachable_pub, reason = "generated code names it as public")]
pub struct Register(Arc<dyn AccessService>);

type Answer<T> = wasmtime::Result<Result<T, Error>>;

impl View<'_> {
    /// Calls the service; `pick` takes the answer that belongs to the question.
    async fn access<T>(
        &mut self,
        register: &Resource<Register>,
        request: AccessRequest,
        pick: fn(AccessResponse) -> Option<T>,
    ) -> Answer<T> {
        let service = Arc::clone(&self.table.get(register)?.0);
        Ok(match service.call(request).await {
            // An owner that answers another question is a defect of the platform, not of the guest.
            Ok(answer) => {
                pick(answer).ok_or_else(|| Error::Unavailable("the service answered another question".into()))
            }
            Err(e) => Err(e.into()),
        })
    }
}

#[allow(clippy::needless_pass_by_value, reason = "has the shape of its siblings, which consume the answer")]
fn done(answer: AccessResponse) -> Option<()> {
    matches!(answer, AccessResponse::Done).then_some(())
}

fn subject(answer: AccessResponse) -> Option<Subject> {
    if let AccessResponse::Subject(subject) = answer { Some(subject.into()) } else { None }
}

impl Host for View<'_> {}

impl HostRegister for View<'_> {
    async fn open(&mut self, binding: String) -> Answer<Resource<Register>> {
        match self.services.access.get(&binding) {
            Some(service) => Ok(Ok(self.table.push(Register(Arc::clone(service)))?)),
            None => Ok(Err(Error::NoSuchBinding)),
        }
    }

    async fn add_subject(&mut self, register: Resource<Register>, actor: String, new: NewSubject) -> Answer<Subject> {
        let request = AccessRequest::AddSubject {
            actor,
            id: new.id,
            kind: new.kind.into(),
            name: new.name,
            description: new.description,
            permission: new.permission.into(),
        };
        self.access(&register, request, subject).await
    }

    async fn update_subject(
        &mut self,
        register: Resource<Register>,
        actor: String,
        id: String,
        update: SubjectUpdate,
    ) -> Answer<Subject> {
        let request = AccessRequest::UpdateSubject {
            actor,
            id,
            kind: update.kind.map(Into::into),
            name: update.name,
            description: update.description,
            permission: update.permission.map(Into::into),
            expected_version: update.expected_version,
        };
        self.access(&register, request, subject).await
    }

    async fn remove_subject(&mut self, register: Resource<Register>, actor: String, id: String) -> Answer<()> {
        self.access(&register, AccessRequest::RemoveSubject { actor, id }, done).await
    }

    async fn get_subject(&mut self, register: Resource<Register>, id: String) -> Answer<Subject> {
        self.access(&register, AccessRequest::GetSubject { id }, subject).await
    }

    async fn list_subjects(
        &mut self,
        register: Resource<Register>,
        kind: Option<SubjectKind>,
        search: Option<String>,
        page: PageRequest,
    ) -> Answer<SubjectPage> {
        let request = AccessRequest::ListSubjects { kind: kind.map(Into::into), search, page: page.into() };
        let pick = |answer| match answer {
            AccessResponse::Subjects(page) => {
                Some(SubjectPage { items: page.items.into_iter().map(Into::into).collect(), total: page.total })
            }
            _ => None,
        };
        self.access(&register, request, pick).await
    }

    async fn issue_key(&mut self, register: Resource<Register>, actor: String, id: String) -> Answer<IssuedKey> {
        let pick = |answer| match answer {
            AccessResponse::Issued(key) => {
                Some(IssuedKey { key: key.key, hash: key.hash, issued_at: millis(key.issued_at.as_millisecond()) })
            }
            _ => None,
        };
        self.access(&register, AccessRequest::IssueKey { actor, id }, pick).await
    }

    async fn revoke_key(&mut self, register: Resource<Register>, actor: String, id: String) -> Answer<()> {
        self.access(&register, AccessRequest::RevokeKey { actor, id }, done).await
    }

    async fn verify_key(
        &mut self,
        register: Resource<Register>,
        actor: String,
        id: String,
        key: String,
    ) -> Answer<bool> {
        let pick = |answer| if let AccessResponse::Verified(is) = answer { Some(is) } else { None };
        self.access(&register, AccessRequest::VerifyKey { actor, id, key }, pick).await
    }

    async fn grant(
        &mut self,
        register: Resource<Register>,
        actor: String,
        id: String,
        resource: String,
        permission: Permission,
    ) -> Answer<()> {
        let request = AccessRequest::Grant { actor, id, resource, permission: permission.into() };
        self.access(&register, request, done).await
    }

    async fn withdraw(
        &mut self,
        register: Resource<Register>,
        actor: String,
        id: String,
        resource: String,
    ) -> Answer<()> {
        self.access(&register, AccessRequest::Withdraw { actor, id, resource }, done).await
    }

    async fn list_rights(&mut self, register: Resource<Register>, id: String, page: PageRequest) -> Answer<RightPage> {
        let pick = |answer| match answer {
            AccessResponse::Rights(page) => {
                Some(RightPage { items: page.items.into_iter().map(Into::into).collect(), total: page.total })
            }
            _ => None,
        };
        self.access(&register, AccessRequest::ListRights { id, page: page.into() }, pick).await
    }

    async fn check(&mut self, register: Resource<Register>, id: String, resource: String) -> Answer<Permission> {
        let pick = |answer| if let AccessResponse::Allowed(p) = answer { Some(p.into()) } else { None };
        self.access(&register, AccessRequest::Check { id, resource }, pick).await
    }

    async fn record(
        &mut self,
        register: Resource<Register>,
        actor: String,
        change: Change,
        subject: Option<String>,
        detail: String,
    ) -> Answer<()> {
        let request = AccessRequest::Record { actor, change: change.into(), subject, detail };
        self.access(&register, request, done).await
    }

    async fn history(
        &mut self,
        register: Resource<Register>,
        subject: Option<String>,
        page: PageRequest,
    ) -> Answer<HistoryPage> {
        let pick = |answer| match answer {
            AccessResponse::History(page) => {
                Some(HistoryPage { items: page.items.into_iter().map(Into::into).collect(), total: page.total })
            }
            _ => None,
        };
        self.access(&register, AccessRequest::History { subject, page: page.into() }, pick).await
    }

    async fn drop(&mut self, register: Resource<Register>) -> wasmtime::Result<()> {
        self.table.delete(register)?;
        Ok(())
    }
}

/// Times before 1970 do not occur; WIT has them unsigned.
fn millis(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

macro_rules! same_cases {
    ($wit:ident, $api:path, $($case:ident),*) => {
        impl From<$wit> for $api {
            fn from(value: $wit) -> Self {
                match value { $($wit::$case => Self::$case,)* }
            }
        }
        impl From<$api> for $wit {
            fn from(value: $api) -> Self {
                type Api = $api;
                match value { $(Api::$case => Self::$case,)* }
            }
        }
    };
}

same_cases!(SubjectKind, api::SubjectKind, Patient, Doctor, Staff);
same_cases!(
    Change,
    api::Change,
    SubjectAdded,
    SubjectChanged,
    SubjectRemoved,
    KeyIssued,
    KeyRevoked,
    KeyVerified,
    RightGranted,
    RightWithdrawn,
    Viewed,
    Refused,
    Session
);

impl From<Permission> for api::Permission {
    fn from(p: Permission) -> Self {
        Self { read: p.read, write: p.write }
    }
}

impl From<api::Permission> for Permission {
    fn from(p: api::Permission) -> Self {
        Self { read: p.read, write: p.write }
    }
}

impl From<PageRequest> for api::PageRequest {
    fn from(p: PageRequest) -> Self {
        Self { offset: p.offset, limit: p.limit }
    }
}

impl From<api::Subject> for Subject {
    fn from(s: api::Subject) -> Self {
        Self {
            id: s.id,
            kind: s.kind.into(),
            name: s.name,
            description: s.description,
            key_hash: s.key_hash,
            key_salt: s.key_salt,
            key_issued_at: s.key_issued_at.map(|t| millis(t.as_millisecond())),
            permission: s.permission.into(),
            created_at: millis(s.created_at.as_millisecond()),
            updated_at: millis(s.updated_at.as_millisecond()),
            version: s.version,
        }
    }
}

impl From<api::AccessRight> for AccessRight {
    fn from(r: api::AccessRight) -> Self {
        Self {
            subject: r.subject,
            resource: r.resource,
            permission: r.permission.into(),
            granted_by: r.granted_by,
            granted_at: millis(r.granted_at.as_millisecond()),
        }
    }
}

impl From<api::HistoryEntry> for HistoryEntry {
    fn from(e: api::HistoryEntry) -> Self {
        Self {
            sequence: e.sequence,
            at: millis(e.at.as_millisecond()),
            actor: e.actor,
            change: e.change.into(),
            subject: e.subject,
            detail: e.detail,
        }
    }
}

impl From<AccessError> for Error {
    fn from(e: AccessError) -> Self {
        match e {
            AccessError::NotFound(id) => Self::NotFound(id),
            AccessError::Conflict(text) => Self::Conflict(text),
            AccessError::Invalid { field, message } => Self::Invalid((field, message)),
            AccessError::NoSuchBinding => Self::NoSuchBinding,
            AccessError::DiskFull => Self::DiskFull,
            AccessError::Corrupt(text) => Self::Corrupt(text),
            AccessError::Unavailable(text) => Self::Unavailable(text),
        }
    }
}
