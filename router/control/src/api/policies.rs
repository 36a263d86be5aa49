//! Policies: who may set them (admins) and see them, and the quotas that every change of an app has to keep.

use jiff::Timestamp;
use marcato_api::{
    ApiResult, App, Bytes, Effective, Etag, Exceeded, OrgName, PageOf, Policy, PolicyScope, PolicyView, Problem,
    ProblemKind, Revision, RevisionConfig, Role, StoreRevision, amount,
};

use super::session::{OrProblem, Session, at_version, invalid};
use super::{ATTEMPTS, state_problem};
use crate::state::{Policies, PolicyRecord, StateError};
use crate::store::Txn;

/// Who may change a quota, for the problem's words.
const WHO: &str = "an admin may change it";

/// How a scope is named in words and in the CLI.
fn place(scope: &PolicyScope) -> String {
    match scope {
        PolicyScope::Cluster => "the cluster".into(),
        PolicyScope::Org(org) => format!("org {org}"),
        PolicyScope::Space(org, space) => format!("space {org}/{space}"),
        PolicyScope::App(_, app) => format!("app {app}"),
    }
}

/// What of a quota is not kept, and who may change it.
pub(super) fn words(over: &Exceeded, effective: &Effective) -> String {
    // The digest is at fault, its size is the number.
    let unit = if over.field == "digest" { over.setting } else { over.field };
    let by =
        effective.source(over.setting).map_or_else(|| "a policy".into(), |s| format!("the policy of {}", place(s)));
    format!(
        "{} is more than the quota of {} ({} in {by}); {WHO}",
        amount(unit, over.value),
        amount(unit, over.quota),
        over.setting,
    )
}

fn refuse(over: &Exceeded, effective: &Effective) -> Problem {
    invalid(over.field, words(over, effective))
}

/// Errors: the first quota that a configuration does not keep.
pub(super) fn check_config(effective: &Effective, config: &RevisionConfig, size: Bytes) -> ApiResult<()> {
    effective.policy.exceeded(config, size).first().map_or(Ok(()), |over| Err(refuse(over, effective)))
}

/// Errors: more instances than the quota.
pub(super) fn check_instances(effective: &Effective, instances: u32) -> ApiResult<()> {
    match effective.policy.max_instances.filter(|most| instances > *most) {
        Some(most) => Err(refuse(&too_many("instances", instances.into(), most, "max_instances"), effective)),
        None => Ok(()),
    }
}

const fn too_many(field: &'static str, value: u64, quota: u32, setting: &'static str) -> Exceeded {
    Exceeded { field, value, quota: quota as u64, setting }
}

/// What of a running app is beyond quotas that became narrower after it was made.
pub(super) fn notes(effective: &Effective, app: &App, revision: Option<&Revision>) -> Vec<String> {
    let mut over = revision.map_or_else(Vec::new, |r| effective.policy.exceeded(&r.config, r.size));
    if let Some(most) = effective.policy.max_instances.filter(|most| app.instances > *most) {
        over.push(too_many("instances", app.instances.into(), most, "max_instances"));
    }
    over.iter()
        .map(|o| format!("{}: {}; what runs goes on, a new revision is refused", o.field, words(o, effective)))
        .collect()
}

impl Session {
    /// Whether the caller may see a scope: all of its own org's, and the cluster's.
    fn sees(&self, scope: &PolicyScope) -> bool {
        self.token.org.as_ref().is_none_or(|own| scope.org().is_none_or(|org| org == own))
    }

    /// What holds for an app now.
    pub(super) async fn effective(&self, app: &App) -> ApiResult<Effective> {
        Ok(self.all_policies().await?.of(app))
    }

    async fn all_policies(&self) -> ApiResult<Policies> {
        Ok(self.api.state.policies().await.or_problem()?.into_iter().map(|(record, _)| record).collect())
    }

    /// The scopes that hold at a scope, itself first. An app's space is known once the app is there.
    async fn scopes(&self, scope: &PolicyScope) -> ApiResult<Vec<PolicyScope>> {
        let mut scopes = vec![scope.clone()];
        if let PolicyScope::App(org, app) = scope
            && let Some((found, _)) = self.api.state.app(app).await.or_problem()?
            && found.org == *org
        {
            scopes.push(PolicyScope::Space(org.clone(), found.space));
        }
        if let Some(org) = scope.org().filter(|_| !matches!(scope, PolicyScope::Org(_))) {
            scopes.push(PolicyScope::Org(org.clone()));
        }
        if *scope != PolicyScope::Cluster {
            scopes.push(PolicyScope::Cluster);
        }
        Ok(scopes)
    }

    async fn view(&self, scope: &PolicyScope, all: &Policies) -> ApiResult<PolicyView> {
        let own = self.api.state.policy(scope).await.or_problem()?;
        let effective = all.at(self.scopes(scope).await?);
        let etag = own.as_ref().map_or(StoreRevision(0), |(_, version)| *version);
        let record = own.map(|(record, _)| record);
        Ok(PolicyView {
            scope: scope.clone(),
            policy: record.as_ref().map(|r| r.policy.clone()).unwrap_or_default(),
            effective,
            etag,
            updated_at: record.as_ref().map(|r| r.updated_at),
            updated_by: record.map(|r| r.updated_by),
        })
    }

    pub(crate) async fn list_policies(&self) -> ApiResult<PageOf<PolicyView>> {
        self.may_look("policy.list", "policies").await?;
        let found = self.api.state.policies().await.or_problem()?;
        let all: Policies = found.iter().map(|(record, _)| record.clone()).collect();
        let mut items = Vec::new();
        for (record, _) in found.iter().filter(|(record, _)| self.sees(&record.scope)) {
            items.push(self.view(&record.scope, &all).await?);
        }
        Ok(PageOf { items, next: None })
    }

    pub(crate) async fn get_policy(&self, scope: &PolicyScope) -> ApiResult<Etag<PolicyView>> {
        let org = scope.org().or(self.token.org.as_ref());
        self.may(Role::Viewer, org, "policy.get", &format!("policy/{scope}")).await?;
        self.versioned(scope).await
    }

    /// Policies are the operators': a token that is limited to an org must not widen its own quota.
    pub(crate) async fn put_policy(
        &self,
        scope: &PolicyScope,
        policy: Policy,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<PolicyView>> {
        let target = format!("policy/{scope}");
        self.may(Role::Admin, None, "policy.set", &target).await?;
        let result = self.change_policy(scope, policy, if_match).await;
        self.failed("policy.set", target, result).await
    }

    async fn change_policy(
        &self,
        scope: &PolicyScope,
        policy: Policy,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<PolicyView>> {
        policy.validate(scope).map_err(|e| invalid(e.field(), e.to_string()))?;
        for _ in 0..ATTEMPTS {
            let old = self.api.state.policy(scope).await.or_problem()?;
            let version = old.as_ref().map(|(_, version)| *version);
            at_version(version.unwrap_or(StoreRevision(0)), if_match)?;
            let before = old.map(|(record, _)| record.policy);
            if before.as_ref() == Some(&policy) {
                break;
            }
            let detail = difference(&before.unwrap_or_default(), &policy);
            let (updated_at, updated_by) = (Timestamp::now(), self.actor().to_owned());
            let record = PolicyRecord { scope: scope.clone(), policy: policy.clone(), updated_at, updated_by };
            let deed = self.deed("policy.set", format!("policy/{scope}"), detail);
            match self.api.state.put_policy(version, &record, &deed).await {
                Ok(_) => break,
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        self.versioned(scope).await
    }

    async fn versioned(&self, scope: &PolicyScope) -> ApiResult<Etag<PolicyView>> {
        let value = self.view(scope, &self.all_policies().await?).await?;
        Ok(Etag { etag: value.etag, value })
    }

    pub(crate) async fn delete_policy(&self, scope: &PolicyScope, if_match: Option<StoreRevision>) -> ApiResult<()> {
        let target = format!("policy/{scope}");
        self.may(Role::Admin, None, "policy.unset", &target).await?;
        for _ in 0..ATTEMPTS {
            let old = self.api.state.policy(scope).await.or_problem()?;
            let version = old.as_ref().map_or(StoreRevision(0), |(_, version)| *version);
            self.failed("policy.unset", target.clone(), at_version(version, if_match)).await?;
            let Some((record, version)) = old else { return Ok(()) };
            let detail = difference(&record.policy, &Policy::default());
            let deed = self.deed("policy.unset", target.clone(), detail);
            match self.api.state.remove_policy(scope, version, &deed).await {
                Ok(()) => return Ok(()),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    /// What a new app of an org must keep. Answers what its transaction has to check.
    /// Errors: the org has as many apps as it may.
    pub(super) async fn room_for_app(&self, org: &OrgName, effective: &Effective) -> ApiResult<Txn> {
        let Some(most) = effective.policy.max_apps else { return Ok(Txn::new()) };
        let txn = self.api.state.one_more_app(org).await.or_problem()?;
        let (apps, _) = self.api.state.apps(None, usize::MAX - 1).await.or_problem()?;
        let have = apps.iter().filter(|(app, _)| app.org == *org).count() as u64;
        if have >= u64::from(most) {
            return Err(refuse(&too_many("org", have + 1, most, "max_apps"), effective));
        }
        Ok(txn)
    }

    /// A revision that is there already may have been made before a quota.
    pub(super) async fn check_current(&self, app: &App, revision: &Revision) -> ApiResult<()> {
        let effective = self.effective(app).await?;
        check_config(&effective, &revision.config, revision.size)
            .map_err(|p| Problem::new(ProblemKind::Invalid, format!("revision {}: {}", revision.number, p.detail)))
            .map_err(|p| p.with_field("current"))
    }
}

/// What changed, for the audit log.
fn difference(old: &Policy, new: &Policy) -> String {
    let fields = |p: &Policy| match serde_json::to_value(p) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let text = |v: Option<&serde_json::Value>| v.map_or_else(|| "unset".to_owned(), ToString::to_string);
    let changed = Policy::FIELDS.iter().filter(|f| old.get(**f) != new.get(**f));
    let words: Vec<String> = changed.map(|f| format!("{f} {} -> {}", text(old.get(*f)), text(new.get(*f)))).collect();
    if words.is_empty() { "nothing changed".into() } else { words.join("; ") }
}
