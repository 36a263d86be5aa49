//! Hosts: listing, join tokens, joining.

use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{
    ApiResult, HostApi, HostDetail, HostId, HostState, HostView, JoinRequest, JoinResponse, JoinToken, Outcome, PageOf,
    Problem, ProblemKind, Role,
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
    let short = |s: &str| s.len() <= 63 && !s.chars().any(char::is_control);
    if !short(&request.zone) {
        return Err(invalid("zone", "use at most 63 printable bytes"));
    }
    if request.labels.len() > 64 || !request.labels.iter().all(|(k, v)| short(k) && short(v)) {
        return Err(invalid("labels", "use at most 64 labels of at most 63 printable bytes each"));
    }
    Ok(())
}
