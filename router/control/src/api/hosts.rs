//! Hosts: listing, join tokens, joining.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{
    ApiResult, HostApi, HostDetail, HostDuty, HostId, HostRemoval, HostState, HostUpdate, HostView, JoinRequest,
    JoinResponse, JoinToken, Outcome, PageOf, Problem, ProblemKind, Role, StoreRevision,
};

use super::session::{OrProblem, Session, invalid};
use super::{Api, state_problem};
use crate::auth;
use crate::observed::Observed;
use crate::state::{Deed, HostRecord, JoinOutcome, JoinTokenRecord};

/// How long a join token may be used.
const JOIN_TTL: Duration = Duration::from_secs(3_600);

fn view(host: HostRecord, observed: &Observed) -> HostView {
    let seen = observed.hosts.get(&host.id);
    let inventory = seen.and_then(|s| s.inventory.as_ref());
    HostView {
        state: seen.map_or(HostState::Unknown, |s| s.state),
        duty: host.duty,
        placed: observed.placed_on(&host.id),
        held_until: seen.and_then(|s| s.steadiness.held_until(Timestamp::now())),
        version: inventory.map(|i| i.version.clone()),
        capacity: inventory.map(|i| i.capacity),
        used: inventory.map(|i| i.used),
        instances: inventory.map_or(0, |i| u32::try_from(i.instances.len()).unwrap_or(u32::MAX)),
        workers: inventory.map_or(0, |i| u32::try_from(i.workers.len()).unwrap_or(u32::MAX)),
        confined: inventory
            .filter(|i| !i.workers.is_empty())
            .map(|i| i.workers.iter().all(|w| w.confinement.is_full())),
        generation: inventory.map(|i| i.generation),
        last_seen: seen.and_then(|s| s.last_seen),
        id: host.id,
        zone: host.zone,
        labels: host.labels,
        control: host.control,
        ingress: host.ingress,
        joined_at: host.joined_at,
    }
}

impl Session {
    pub(crate) async fn list_hosts(&self) -> ApiResult<PageOf<HostView>> {
        self.may_look("host.list", "hosts").await?;
        let observed = self.api.observed.snapshot();
        let hosts = self.api.state.hosts().await.or_problem()?;
        Ok(PageOf { items: hosts.into_iter().map(|h| view(h, &observed)).collect(), next: None })
    }

    /// Workers are named after apps of every org, so a token that is limited to one sees none of them.
    pub(crate) async fn get_host(&self, host: &HostId) -> ApiResult<HostDetail> {
        self.may(Role::Viewer, None, "host.get", &format!("host/{host}")).await?;
        let found = self.api.state.host(host).await.or_problem()?;
        let found = found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no host {host}")))?;
        let observed = self.api.observed.snapshot();
        let seen = observed.hosts.get(host);
        let inventory = seen.and_then(|s| s.inventory.as_ref());
        let mut worker_list = inventory.map(|i| i.workers.clone()).unwrap_or_default();
        worker_list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(HostDetail { host: view(found, &observed), worker_list, error: seen.and_then(|s| s.error.clone()) })
    }

    /// Another duty, other labels. What follows from it (a drain) takes its time: `placed` says what is left.
    pub(crate) async fn update_host(&self, id: &HostId, update: HostUpdate) -> ApiResult<HostView> {
        let target = format!("host/{id}");
        self.may(Role::Admin, None, "host.update", &target).await?;
        let changed = self.change_host(id, update, &target).await;
        let host = self.failed("host.update", target, changed).await?;
        Ok(view(host, &self.api.observed.snapshot()))
    }

    async fn change_host(&self, id: &HostId, update: HostUpdate, target: &str) -> ApiResult<HostRecord> {
        if let Some(labels) = &update.labels {
            check_labels(labels)?;
        }
        let (old, version) = self.host_at(id).await?;
        let mut said = Vec::new();
        let mut new = old.clone();
        if let Some(duty) = update.duty {
            new.duty = duty;
            said.push(format!("duty {}", duty_name(duty)));
        }
        if let Some(labels) = update.labels {
            let list: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            said.push(format!("labels {}", list.join(",")));
            new.labels = labels;
        }
        if new != old {
            let deed = self.deed("host.update", target.to_owned(), said.join(", "));
            self.api.state.replace_host(version, &new, &deed).await.or_problem()?;
        }
        Ok(new)
    }

    /// Takes a host out of the fleet. What it showed is refused from then on: nobody asks it any more, and no other host lets
    /// it use a service.
    pub(crate) async fn remove_host(&self, id: &HostId, removal: HostRemoval) -> ApiResult<()> {
        let target = format!("host/{id}");
        self.may(Role::Admin, None, "host.remove", &target).await?;
        let removed = self.forget_host(id, removal, &target).await;
        self.failed("host.remove", target, removed).await
    }

    async fn forget_host(&self, id: &HostId, removal: HostRemoval, target: &str) -> ApiResult<()> {
        let (_, version) = self.host_at(id).await?;
        let services = self.api.state.services().await.or_problem()?;
        let owned: Vec<_> = services.iter().filter(|s| s.owner == *id).map(|s| s.name.as_str()).collect();
        let placed = self.api.observed.load().placed_on(id);
        let refuse = |why: String| Err(Problem::new(ProblemKind::Conflict, why));
        if !removal.force && !owned.is_empty() {
            let names = owned.join(", ");
            return refuse(format!(
                "{id} has the data of {names}: back it up (marcato services backup) and delete the services first, or remove \
                 with force, and what it has is out of reach"
            ));
        }
        if !removal.force && placed > 0 {
            return refuse(format!(
                "{id} has {placed} instances: drain it first (marcato hosts drain {id}), or remove with force, and they are \
                 placed elsewhere"
            ));
        }
        let detail =
            format!("{placed} instances, {} services{}", owned.len(), if removal.force { ", forced" } else { "" });
        self.api.state.remove_host(version, id, &self.deed("host.remove", target.to_owned(), detail)).await.or_problem()
    }

    async fn host_at(&self, id: &HostId) -> ApiResult<(HostRecord, StoreRevision)> {
        let found = self.api.state.host_at(id).await.or_problem()?;
        found.ok_or_else(|| Problem::new(ProblemKind::NotFound, format!("there is no host {id}")))
    }

    pub(crate) async fn host_metrics(&self, host: &HostId) -> ApiResult<String> {
        self.may(Role::Viewer, None, "host.metrics", &format!("host/{host}")).await?;
        let found = self.api.state.host(host).await.or_problem()?;
        let missing = || Problem::new(ProblemKind::NotFound, format!("there is no host {host}"));
        self.api.hosts.client(&found.ok_or_else(missing)?).metrics().await
    }

    pub(crate) async fn create_join_token(&self) -> ApiResult<JoinToken> {
        self.may(Role::Admin, None, "join-token.create", "hosts").await?;
        let (token, hash) = auth::new_secret(auth::JOIN_PREFIX);
        let expires_at = Timestamp::now() + JOIN_TTL;
        let record = JoinTokenRecord { created_by: self.actor().to_owned(), expires_at, used_by: None };
        self.api.state.create_join_token(&hash, &record).await.or_problem()?;
        Ok(JoinToken { token, expires_at })
    }
}

/// Why a host was not let in.
pub(super) enum NotJoined {
    /// The token does not stand: counted against the peer, and recorded by the caller.
    Token(&'static str),
    /// Anything else.
    Problem(Box<Problem>),
}

impl From<Problem> for NotJoined {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// Lets a host in. The certificate is made before the token is used up, so that a request that
/// cannot be signed costs no token; it is given out only after.
pub(super) async fn join(api: &Api, secret: &str, request: &JoinRequest) -> Result<JoinResponse, NotJoined> {
    let hash = auth::hash(secret);
    if !auth::well_formed(auth::JOIN_PREFIX, secret) {
        return Err(NotJoined::Token("that is not a join token (mj_…)"));
    }
    api.state.join_token_stands(&hash).await.or_problem()?.map_err(|o| not_joined(&o))?;
    check(request)?;
    let certificate_pem = match api.authority.sign_host(&request.csr_pem, &request.id, Timestamp::now()) {
        Ok(pem) => pem,
        Err(e) => {
            let why = format!("{e}: it must be PKCS#10 in PEM with a valid signature");
            let target = format!("host/{}", request.id);
            let deed = Deed::new(format!("host:{}", request.id), "host.join", target, &why);
            if let Err(e) = api.state.record(&deed, Outcome::Failed).await {
                return Err(state_problem(&e).into());
            }
            return Err(invalid("csr_pem", why).into());
        }
    };
    match api.state.join(&hash, request).await.or_problem()? {
        JoinOutcome::Joined(_) => Ok(JoinResponse { certificate_pem, ca_pem: api.authority.pem().to_owned() }),
        refused => Err(not_joined(&refused)),
    }
}

fn not_joined(outcome: &JoinOutcome) -> NotJoined {
    NotJoined::Token(match outcome {
        JoinOutcome::Used { .. } => "the join token was used before; make a new one (marcato hosts token)",
        JoinOutcome::Expired => "the join token is too old; make a new one (marcato hosts token)",
        JoinOutcome::Unknown | JoinOutcome::Joined(_) => "the join token is not known",
    })
}

fn check(request: &JoinRequest) -> ApiResult<()> {
    if request.csr_pem.len() > 16 << 10 {
        return Err(invalid("csr_pem", "longer than 16 KiB"));
    }
    if !short(&request.zone) {
        return Err(invalid("zone", "use at most 63 printable bytes"));
    }
    check_labels(&request.labels)
}

fn check_labels(labels: &BTreeMap<String, String>) -> ApiResult<()> {
    if labels.len() > 64 || !labels.iter().all(|(k, v)| short(k) && !k.is_empty() && short(v)) {
        return Err(invalid("labels", "use at most 64 labels of at most 63 printable bytes each"));
    }
    Ok(())
}

fn short(text: &str) -> bool {
    text.len() <= 63 && !text.chars().any(char::is_control)
}

const fn duty_name(duty: HostDuty) -> &'static str {
    match duty {
        HostDuty::Active => "active",
        HostDuty::Cordoned => "cordoned",
        HostDuty::Draining => "draining",
    }
}
