//! Revisions: made from what is given on top of the current one.

use std::collections::{BTreeMap, BTreeSet};

use marcato_api::{
    ApiResult, App, AppName, Binding, NewRevision, OutboundHost, PageOf, Problem, ProblemKind, Revision,
    RevisionConfig, RevisionNumber, RevisionPhase, Role, ServiceKind, StoreRevision,
};

use super::apps::limit;
use super::session::{OrProblem, Session, at_version, invalid};
use super::{ATTEMPTS, policies, state_problem};
use crate::state::{RevisionDraft, StateError, keys};
use crate::store::{Expected, Txn};
use crate::tasks::KEPT_REVISIONS;

/// What reads instead of an env value.
const HIDDEN: &str = "***";

/// The same revision, env values hidden: they are secrets.
pub(super) fn hidden(mut revision: Revision) -> Revision {
    for value in revision.config.env.values_mut() {
        HIDDEN.clone_into(value);
    }
    revision
}

impl Session {
    pub(crate) async fn list_revisions(
        &self,
        app: &AppName,
        after: Option<String>,
        wanted: u32,
    ) -> ApiResult<PageOf<Revision>> {
        let wanted = limit(wanted)?;
        self.visible_app(app, Role::Viewer, "revision.list").await?;
        let after = after.map(|a| a.parse().map(RevisionNumber)).transpose();
        let after = after.map_err(|_| invalid("after", "expected a revision's number"))?;
        let (found, next) = self.api.state.revisions(app, after, wanted).await.or_problem()?;
        Ok(PageOf { items: found.into_iter().map(hidden).collect(), next })
    }

    pub(crate) async fn get_revision(&self, app: &AppName, number: RevisionNumber) -> ApiResult<Revision> {
        self.visible_app(app, Role::Viewer, "revision.get").await?;
        let found = self.api.state.revision(app, number).await.or_problem()?;
        match found {
            Some(found) => Ok(hidden(found)),
            None => Err(Problem::new(ProblemKind::NotFound, self.no_revision(app, number).await)),
        }
    }

    /// Why a revision is not there.
    pub(super) async fn no_revision(&self, app: &AppName, number: RevisionNumber) -> String {
        if self.api.state.was_revision(app, number).await.unwrap_or(false) {
            return format!(
                "{app} no longer has revision {number}: it was trimmed; the newest {KEPT_REVISIONS} are kept \
                 (marcato revisions {app}), push again what it was"
            );
        }
        format!("{app} has no revision {number}")
    }

    pub(crate) async fn create_revision(
        &self,
        app: &AppName,
        new: NewRevision,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Revision> {
        self.visible_app(app, Role::Deployer, "revision.create").await?;
        let result = self.next_revision(app, &new, if_match).await;
        self.failed("revision.create", format!("app/{app}"), result).await.map(hidden)
    }

    async fn next_revision(
        &self,
        app: &AppName,
        new: &NewRevision,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Revision> {
        for _ in 0..ATTEMPTS {
            let old = self.visible_app(app, Role::Deployer, "revision.create").await?;
            at_version(old.1, if_match)?;
            let current = match old.0.current {
                Some(number) => self.api.state.revision(app, number).await.or_problem()?,
                None => None,
            };
            let digest = new.digest.clone().or_else(|| current.as_ref().map(|c| c.digest.clone()));
            let digest = digest.ok_or_else(|| invalid("digest", "the app has no component yet: name one"))?;
            let config = merged(new, current.as_ref())?;
            config.validate().map_err(|e| invalid(&format!("config.{}", e.field), e.to_string()))?;
            check_outbound(&config)?;
            let (bound, kinds) = self.check_bindings(&old.0, &config).await?;
            let uploaded = self.api.state.component(&digest).await.or_problem()?;
            let uploaded = uploaded.ok_or_else(|| {
                invalid("digest", format!("{digest} is not here: upload it first (PUT /v1/components/{digest})"))
            })?;
            check_kinds(&config, &kinds, uploaded.0.needs.as_ref())?;
            // A failed roll-out may be tried again with the same bytes; else the same is the same.
            if let Some(same) = current.filter(|c| c.digest == digest && c.config == config)
                && same.phase != RevisionPhase::Failed
            {
                return Ok(same);
            }
            policies::check_config(&self.effective(&old.0).await?, &config, uploaded.0.size)?;
            let extra = self.api.state.use_component(&uploaded, bound).or_problem()?;
            let reason = if new.reason.is_empty() { "push" } else { &new.reason };
            let draft = RevisionDraft {
                digest,
                size: uploaded.0.size,
                config,
                created_by: self.actor().to_owned(),
                reason: reason.chars().filter(|c| !c.is_control()).take(200).collect(),
            };
            match self.api.state.create_revision(&old, draft, extra, self.actor()).await {
                Ok(revision) => return Ok(revision),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    /// Every bound service must be there, in the app's org and space. Answers the checks that keep it so, and the
    /// kind of each.
    async fn check_bindings(&self, app: &App, config: &RevisionConfig) -> ApiResult<(Txn, Vec<ServiceKind>)> {
        let mut names = BTreeSet::new();
        let (mut txn, mut kinds) = (Txn::new(), Vec::new());
        for (at, Binding { name, service }) in config.bindings.iter().enumerate() {
            let field = format!("config.bindings[{at}]");
            if name.is_empty() || name.len() > 63 || name.chars().any(char::is_control) {
                return Err(invalid(&format!("{field}.name"), "use 1 to 63 printable bytes"));
            }
            if !names.insert(name) {
                return Err(invalid(&format!("{field}.name"), format!("the name {name:?} is bound twice")));
            }
            let found = self.api.state.service(service).await.or_problem()?;
            let fits = found.filter(|(s, _)| s.org == app.org && s.space == app.space);
            let Some((found, _)) = fits else {
                let why = format!("there is no service {service} in org {}, space {}", app.org, app.space);
                return Err(invalid(&format!("{field}.service"), why));
            };
            kinds.push(found.kind);
            txn = txn.check(keys::service(service), Expected::Present);
        }
        Ok((txn, kinds))
    }
}

/// A component that uses services of some kinds cannot do anything with one of another kind. One that uses none may
/// be bound ahead of its next version.
fn check_kinds(config: &RevisionConfig, kinds: &[ServiceKind], needs: Option<&BTreeSet<ServiceKind>>) -> ApiResult<()> {
    let Some(needs) = needs.filter(|n| !n.is_empty()) else { return Ok(()) };
    for (at, (binding, kind)) in config.bindings.iter().zip(kinds).enumerate() {
        if !needs.contains(kind) {
            let wanted: Vec<&str> = needs.iter().map(|k| k.as_str()).collect();
            let why = format!(
                "{} is a service of kind {kind}, and the component imports what needs kind {} only",
                binding.service,
                wanted.join(" or ")
            );
            return Err(invalid(&format!("config.bindings[{at}].service"), why));
        }
    }
    Ok(())
}

/// What is asked for on top of what is current.
fn merged(new: &NewRevision, current: Option<&Revision>) -> ApiResult<RevisionConfig> {
    let before = current.map(|c| &c.config);
    let mut config = new.config.clone().or_else(|| before.cloned()).unwrap_or_default();
    let no_env = BTreeMap::new();
    let env_before = before.map_or(&no_env, |b| &b.env);
    if config.env.is_empty() {
        config.env.clone_from(env_before);
    }
    for (name, change) in &new.env {
        match change {
            Some(value) => drop(config.env.insert(name.clone(), value.clone())),
            None => drop(config.env.remove(name)),
        }
    }
    // What an earlier answer hid comes back hidden: it means "as it is".
    for (name, value) in &mut config.env {
        if value == HIDDEN {
            let known = env_before.get(name).ok_or_else(|| {
                invalid(&format!("config.env.{name}"), "*** stands for a hidden value, and there is none to keep")
            })?;
            value.clone_from(known);
        }
    }
    config.bindings.retain(|b| !new.unbind.contains(&b.name) && !new.bind.iter().any(|n| n.name == b.name));
    config.bindings.extend(new.bind.iter().cloned());
    config.bindings.sort();
    Ok(config)
}

fn check_outbound(config: &RevisionConfig) -> ApiResult<()> {
    for (at, entry) in config.allowed_outbound_hosts.iter().enumerate() {
        OutboundHost::parse(entry).map_err(|why| invalid(&format!("config.allowed_outbound_hosts[{at}]"), why))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outbound_hosts_are_names_with_an_optional_port() {
        let with = |h: &str| RevisionConfig { allowed_outbound_hosts: vec![h.into()], ..RevisionConfig::default() };
        for good in ["example.org", "example.org:8443", "*.example.org", "127.0.0.1:80", "[::1]:80"] {
            check_outbound(&with(good)).unwrap();
        }
        for bad in ["", "*", "https://example.org", "a b", "example.org:0", "example.org:99999", "*.", "a/b", ":80"] {
            assert!(check_outbound(&with(bad)).is_err(), "{bad:?}");
        }
    }
}
