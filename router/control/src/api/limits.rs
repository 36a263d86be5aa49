//! What `app show --limits` says: each budget from configuration and policy, with what the hosts saw of it.

use std::collections::BTreeMap;

use marcato_api::{
    ApiResult, AppBudget, AppLimits, AppName, Effective, LimitScope, LimitSource, LimitUsage, LimitView,
    RevisionConfig, Role,
};

use super::session::{OrProblem, Session};

/// What a manifest sets, over what it is counted, and the setting that is its quota.
const MANIFEST: [(&str, LimitScope, &str); 15] = [
    ("memory_bytes", LimitScope::Sandbox, "max_memory_bytes"),
    ("instance_memory_bytes", LimitScope::Instance, "max_instance_memory_bytes"),
    ("buffer_bytes", LimitScope::Sandbox, "max_buffer_bytes"),
    ("cpu_ms", LimitScope::Request, "max_cpu_ms"),
    ("time_ms", LimitScope::Request, "max_time_ms"),
    ("first_byte_ms", LimitScope::Request, "max_first_byte_ms"),
    ("idle_ms", LimitScope::Request, "max_idle_ms"),
    ("request_body_bytes", LimitScope::Request, "max_request_body_bytes"),
    ("response_body_bytes", LimitScope::Request, "max_response_body_bytes"),
    ("outbound_requests", LimitScope::Request, "max_outbound_requests"),
    ("outbound_concurrent", LimitScope::Request, "max_outbound_concurrent"),
    ("outbound_bytes", LimitScope::Request, "max_outbound_bytes"),
    ("concurrency", LimitScope::Instance, "max_concurrency"),
    ("queue", LimitScope::Instance, "max_queue"),
    ("queue_timeout_ms", LimitScope::Request, ""),
];

impl Session {
    pub(crate) async fn app_limits(&self, name: &AppName) -> ApiResult<AppLimits> {
        let (app, _) = self.visible_app(name, Role::Viewer, "app.limits").await?;
        let effective = self.effective(&app).await?;
        // What serves, when the newest one does not (yet).
        let revision = match app.current {
            Some(number) => self.api.state.revision(name, number).await.or_problem()?,
            None => None,
        };
        let observed = self.api.observed.snapshot();
        let statuses = observed.hosts.values().filter_map(|h| h.inventory.as_ref()).flat_map(|i| &i.instances);
        let mut instances = 0;
        let mut seen = BTreeMap::new();
        for status in statuses.filter(|s| s.app == *name) {
            instances += 1;
            status.limits.iter().for_each(|usage| gather(&mut seen, usage));
        }
        let config = revision.as_ref().map(|r| &r.config);
        Ok(AppLimits {
            app: name.clone(),
            revision: revision.as_ref().map(|r| r.number),
            isolation: effective.isolation(),
            isolation_set_by: effective.source("isolation").cloned(),
            instances,
            items: views(&effective, config, seen),
        })
    }
}

/// Puts what several instances saw of one limit together: the most that is used, and how often it fired in all.
fn gather(seen: &mut BTreeMap<String, LimitUsage>, usage: &LimitUsage) {
    match seen.get_mut(&*usage.name) {
        Some(sum) => {
            sum.used = sum.used.max(usage.used);
            sum.peak = sum.peak.max(usage.peak);
            sum.fired = sum.fired.saturating_add(usage.fired);
            sum.limit = sum.limit.max(usage.limit);
        }
        None => drop(seen.insert(usage.name.clone().into_owned(), usage.clone())),
    }
}

/// The numbers that a manifest sets, by name.
fn numbers(config: &RevisionConfig) -> BTreeMap<String, u64> {
    let mut numbers = BTreeMap::new();
    if let Ok(serde_json::Value::Object(limits)) = serde_json::to_value(config.limits) {
        numbers.extend(limits.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))));
    }
    numbers.insert("concurrency".into(), config.concurrency.into());
    numbers.insert("queue".into(), config.queue.into());
    numbers.insert("queue_timeout_ms".into(), config.queue_timeout_ms.0);
    numbers
}

/// What policies give the app on each host: name, limit, setting.
fn given(budget: &AppBudget) -> [(&'static str, Option<u64>, &'static str); 6] {
    [
        ("app_memory_bytes", budget.app_memory_bytes.map(|b| b.0), "app_memory_bytes"),
        ("app_buffer_bytes", Some(budget.app_buffer_bytes.0), "app_buffer_bytes"),
        ("app_outbound_concurrent", budget.outbound_in_flight.map(u64::from), "app_outbound_concurrent"),
        ("log_rate", budget.log_bytes_per_s.map(|b| b.0), "log_bytes_per_s"),
        ("cpu_weight", Some(budget.cpu_weight.into()), "cpu_weight"),
        ("cpu_cap_millis", budget.cpu_cap_millis.map(u64::from), "cpu_cap_millis"),
    ]
}

fn views(
    effective: &Effective,
    config: Option<&RevisionConfig>,
    mut seen: BTreeMap<String, LimitUsage>,
) -> Vec<LimitView> {
    let usual = numbers(&RevisionConfig::default());
    let set = config.map(numbers).unwrap_or_default();
    let mut items = Vec::new();
    for (name, scope, setting) in MANIFEST {
        let limit = set.get(name).or(usual.get(name)).copied();
        let set_by = if limit == usual.get(name).copied() { LimitSource::Default } else { LimitSource::Manifest };
        let view = LimitView {
            name: name.into(),
            scope,
            limit,
            set_by,
            quota: effective.policy.number(setting),
            policy: effective.source(setting).cloned(),
            used: 0,
            peak: 0,
            fired: 0,
        };
        items.push(with_usage(view, seen.remove(name)));
    }
    for (name, limit, setting) in given(&effective.budget()) {
        let policy = effective.source(setting).cloned();
        let set_by = if policy.is_some() { LimitSource::Policy } else { LimitSource::Default };
        let scope = LimitScope::App;
        let view =
            LimitView { name: name.into(), scope, limit, set_by, quota: None, policy, used: 0, peak: 0, fired: 0 };
        items.push(with_usage(view, seen.remove(name)));
    }
    // What hosts and releases fix.
    items.extend(seen.into_values().map(|usage| LimitView {
        name: usage.name.into_owned(),
        scope: usage.scope,
        limit: usage.limit,
        set_by: LimitSource::Platform,
        quota: None,
        policy: None,
        used: usage.used,
        peak: usage.peak,
        fired: usage.fired,
    }));
    items
}

fn with_usage(mut view: LimitView, usage: Option<LimitUsage>) -> LimitView {
    if let Some(usage) = usage {
        view.scope = usage.scope;
        // A host's own limit, where nobody says another.
        view.limit = view.limit.or(usage.limit);
        (view.used, view.peak, view.fired) = (usage.used, usage.peak, usage.fired);
    }
    view
}

#[cfg(test)]
mod tests {
    use marcato_api::{Bytes, Policy, PolicyScope};

    use super::*;

    fn usage(name: &'static str, used: u64, peak: u64, fired: u64) -> LimitUsage {
        LimitUsage { name: name.into(), scope: LimitScope::Instance, limit: Some(9), used, peak, fired }
    }

    #[test]
    fn every_limit_of_a_configuration_has_a_row_and_says_who_set_it() {
        let mut config = RevisionConfig { concurrency: 3, ..RevisionConfig::default() };
        config.limits.memory_bytes = Bytes::mib(32);
        let org: PolicyScope = "org:clinic".parse().unwrap();
        let policy = Policy {
            max_memory_bytes: Some(Bytes::mib(64)),
            app_memory_bytes: Some(Bytes::mib(512)),
            cpu_weight: Some(7),
            ..Policy::default()
        };
        let effective = Effective::of([(org.clone(), &policy)]);
        let mut seen = BTreeMap::new();
        for usage in [usage("memory_bytes", 1, 2, 3), usage("memory_bytes", 5, 1, 4), usage("stack_bytes", 0, 0, 1)] {
            gather(&mut seen, &usage);
        }
        let items = views(&effective, Some(&config), seen);
        let of = |name: &str| items.iter().find(|i| i.name == name).unwrap_or_else(|| panic!("{name}"));
        let memory = of("memory_bytes");
        assert_eq!(
            (memory.limit, memory.quota, memory.set_by),
            (Some(32 << 20), Some(64 << 20), LimitSource::Manifest)
        );
        assert_eq!((memory.used, memory.peak, memory.fired, &memory.policy), (5, 2, 7, &Some(org.clone())));
        assert_eq!((of("cpu_ms").set_by, of("concurrency").set_by), (LimitSource::Default, LimitSource::Manifest));
        let (app, weight) = (of("app_memory_bytes"), of("cpu_weight"));
        assert_eq!((app.limit, app.set_by, app.scope), (Some(512 << 20), LimitSource::Policy, LimitScope::App));
        assert_eq!((weight.limit, &weight.policy), (Some(7), &Some(org)));
        assert_eq!((of("stack_bytes").set_by, of("stack_bytes").fired), (LimitSource::Platform, 1));
        // Whatever a release adds to the manifest's limits has its row here.
        for name in numbers(&config).keys() {
            of(name);
        }
        for (_, _, setting) in MANIFEST {
            assert!(setting.is_empty() || Policy::FIELDS.contains(&setting), "{setting}");
        }
    }
}
