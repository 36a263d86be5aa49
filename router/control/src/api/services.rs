//! Services: each has one owner host, which has its database.

use jiff::Timestamp;
use marcato_api::{
    ApiResult, AppName, HostApi, HostState, NewService, PageOf, Problem, ProblemKind, Role, Service, ServiceId,
    ServiceName,
};
use marcato_client::HostClient;

use super::session::{OrProblem, Session};
use super::{ATTEMPTS, state_problem};
use crate::observed::Observed;
use crate::state::{Desired, ServiceRecord, StateError, keys};
use crate::store::{Expected, Txn};

/// Longest backup that goes through the router.
pub(super) const BACKUP_LIMIT_BYTES: usize = 1 << 30;

/// Apps whose current or stable revision binds this service.
fn bound_by(desired: &Desired, name: &ServiceName) -> Vec<AppName> {
    let binds = |app: &marcato_api::App| {
        [app.current, app.stable].into_iter().flatten().any(|number| {
            let revision = desired.revisions.get(&(app.name.clone(), number));
            revision.is_some_and(|r| r.config.bindings.iter().any(|b| b.service == *name))
        })
    };
    desired.apps.iter().filter(|(app, _)| binds(app)).map(|(app, _)| app.name.clone()).collect()
}

fn view(record: ServiceRecord, desired: &Desired, observed: &Observed) -> Service {
    let inventory = observed.hosts.get(&record.owner).and_then(|h| h.inventory.as_ref());
    let status = inventory.and_then(|i| i.services.iter().find(|s| s.id == record.id));
    Service {
        bytes: status.map(|s| s.bytes),
        ready: status.is_some_and(|s| s.ready),
        bound_by: bound_by(desired, &record.name),
        id: record.id,
        name: record.name,
        kind: record.kind,
        org: record.org,
        space: record.space,
        owner: record.owner,
        created_at: record.created_at,
    }
}

impl Session {
    async fn service_view(&self, record: ServiceRecord) -> ApiResult<Service> {
        let desired = self.api.state.desired(&[]).await.or_problem()?;
        Ok(view(record, &desired, &self.api.observed.load()))
    }

    pub(crate) async fn list_services(&self) -> ApiResult<PageOf<Service>> {
        self.may_look("service.list", "services").await?;
        let desired = self.api.state.desired(&[]).await.or_problem()?;
        let observed = self.api.observed.snapshot();
        let visible = desired.services.iter().filter(|s| self.token.org.as_ref().is_none_or(|o| *o == s.org));
        Ok(PageOf { items: visible.map(|s| view(s.clone(), &desired, &observed)).collect(), next: None })
    }

    pub(crate) async fn put_service(&self, name: &ServiceName, new: NewService) -> ApiResult<Service> {
        let target = format!("service/{name}");
        self.may(Role::Deployer, Some(&new.org), "service.create", &target).await?;
        let result = self.ensure_service(name, &new).await;
        self.failed("service.create", target, result).await
    }

    async fn ensure_service(&self, name: &ServiceName, new: &NewService) -> ApiResult<Service> {
        for _ in 0..ATTEMPTS {
            if let Some((found, _)) = self.api.state.service(name).await.or_problem()? {
                if (found.kind, &found.org, &found.space) == (new.kind, &new.org, &new.space) {
                    return self.service_view(found).await;
                }
                let why = format!("the name {name} is taken by a service of kind {} or in another org", found.kind);
                return Err(Problem::new(ProblemKind::Conflict, why));
            }
            let desired = self.api.state.desired(&[]).await.or_problem()?;
            let owner = self.pick_owner(&desired)?;
            let record = ServiceRecord {
                id: ServiceId::generate(),
                name: name.clone(),
                kind: new.kind,
                org: new.org.clone(),
                space: new.space.clone(),
                owner,
                created_at: Timestamp::now(),
            };
            let detail = format!("{} on {}", record.kind, record.owner);
            let deed = self.deed("service.create", format!("service/{name}"), detail);
            match self.api.state.create_service(&record, &deed).await {
                Ok(()) => return Ok(view(record, &desired, &self.api.observed.load())),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    /// Hosts that answer first, then the one with the fewest services, then by id.
    fn pick_owner(&self, desired: &Desired) -> ApiResult<marcato_api::HostId> {
        let observed = self.api.observed.load();
        let rank = |id: &marcato_api::HostId| {
            let up = observed.hosts.get(id).is_some_and(|h| h.state == HostState::Up);
            (!up, desired.services.iter().filter(|s| s.owner == *id).count(), id.clone())
        };
        let owner = desired.hosts.iter().map(|h| &h.id).min_by_key(|id| rank(id)).cloned();
        owner.ok_or_else(|| {
            let why = "no host has joined yet, and a service needs one for its database; start `marcato hostd`";
            Problem::new(ProblemKind::Unavailable, why)
        })
    }

    pub(super) async fn visible_service(
        &self,
        name: &ServiceName,
        needed: Role,
        action: &'static str,
    ) -> ApiResult<(ServiceRecord, marcato_api::StoreRevision)> {
        let target = format!("service/{name}");
        let found = self.api.state.service(name).await.or_problem()?;
        let org = found.as_ref().map(|(s, _)| &s.org).or(self.token.org.as_ref());
        self.may(needed, org, action, &target).await?;
        found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no service {name}")))
    }

    pub(crate) async fn delete_service(&self, name: &ServiceName) -> ApiResult<()> {
        let target = format!("service/{name}");
        for _ in 0..ATTEMPTS {
            let old = self.visible_service(name, Role::Deployer, "service.delete").await?;
            let desired = self.api.state.desired(&[]).await.or_problem()?;
            let bound = bound_by(&desired, name);
            if !bound.is_empty() {
                let apps: Vec<_> = bound.iter().map(AppName::as_str).collect();
                let why = format!("{name} is bound by {}: unbind it first", apps.join(", "));
                return self.failed("service.delete", target, Err(Problem::new(ProblemKind::Conflict, why))).await;
            }
            // Whoever binds it now changes its app, and this commit does not hold.
            let near = desired.apps.iter().filter(|(a, _)| a.org == old.0.org && a.space == old.0.space);
            let unchanged = near.fold(Txn::new(), |t, (a, v)| t.check(keys::app(&a.name), Expected::Revision(*v)));
            let deed = self.deed("service.delete", target.clone(), format!("{} on {}", old.0.kind, old.0.owner));
            match self.api.state.remove_service(&old, unchanged, &deed).await {
                Ok(()) => return Ok(()),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    async fn owner_of(&self, service: &ServiceRecord) -> ApiResult<HostClient> {
        let host = self.api.state.host(&service.owner).await.or_problem()?;
        let host = host.ok_or_else(|| {
            let why = format!("the host {} that has the data of {} is gone", service.owner, service.name);
            Problem::new(ProblemKind::Unavailable, why)
        })?;
        Ok(self.api.hosts.client(&host))
    }

    /// A copy holds everything that the service holds, so it needs the role that may also write it.
    pub(crate) async fn backup_service(&self, name: &ServiceName) -> ApiResult<Vec<u8>> {
        let (service, _) = self.visible_service(name, Role::Deployer, "service.backup").await?;
        let result = match self.owner_of(&service).await {
            Ok(owner) => owner.backup(&service.id).await,
            Err(e) => Err(e),
        };
        let bytes = self.failed("service.backup", format!("service/{name}"), result).await?;
        let deed = self.deed("service.backup", format!("service/{name}"), format!("{} bytes", bytes.len()));
        self.api.state.commit(Txn::new(), &deed).await.or_problem()?;
        Ok(bytes)
    }

    pub(crate) async fn restore_service(&self, name: &ServiceName, bytes: Vec<u8>) -> ApiResult<()> {
        let (service, _) = self.visible_service(name, Role::Deployer, "service.restore").await?;
        let length = bytes.len();
        let result = match self.owner_of(&service).await {
            Ok(owner) => owner.restore(&service.id, bytes).await,
            Err(e) => Err(e),
        };
        self.failed("service.restore", format!("service/{name}"), result).await?;
        let deed = self.deed("service.restore", format!("service/{name}"), format!("{length} bytes"));
        self.api.state.commit(Txn::new(), &deed).await.or_problem().map(drop)
    }
}
