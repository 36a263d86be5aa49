//! `policy`: what operators set per cluster, org, space or app.

use anyhow::Result;
use clap::{Args, Subcommand};
use marcato_api::{
    AdminApi, AppName, Bytes, Effective, IsolationClass, Millis, OrgName, Policy, PolicyScope, PolicyView, ProblemKind,
    SpaceName, amount,
};
use marcato_client::AdminClient;

use crate::failure::{Code, Failure};
use crate::manifest::{Interval, Size};
use crate::output::{Output, confirm, dash, time};

/// Tries of a change that loses against others.
const ATTEMPTS: usize = 5;

/// Show and set what apps may have: isolation, quotas, shares of the CPU
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show every policy that is set
    List,
    /// Show what holds at a scope, and which scope says so
    Show(ScopeArgs),
    /// Set something at a scope; what is not named stays
    Set(Box<SetArgs>),
    /// Remove settings of a scope, so that the next wider one holds again
    Unset(UnsetArgs),
}

/// A scope: the cluster, unless an org, a space of it, or an app is named.
#[derive(Debug, Args)]
pub(crate) struct ScopeArgs {
    /// Of this organization
    #[arg(long)]
    org: Option<OrgName>,
    /// Of this space of the organization
    #[arg(long, requires = "org")]
    space: Option<SpaceName>,
    /// Of this app; its organization need not be named once the app is there
    #[arg(long, conflicts_with = "space")]
    app: Option<AppName>,
}

/// What to set.
#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    #[command(flatten)]
    settings: Settings,
}

/// What to remove.
#[derive(Debug, Args)]
pub(crate) struct UnsetArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Settings as `policy set` or `policy show` spells them; none: all of the scope
    #[arg(value_name = "SETTING")]
    settings: Vec<String>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// The settings.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Settings {
    /// shared: one worker process for the apps of a trust group; process: one of the app's own
    #[arg(long, value_name = "CLASS")]
    isolation: Option<IsolationClass>,
    /// The trust group of the class shared
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Most linear memory that a manifest may ask for, of one sandbox, such as 256MiB
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Size>,
    /// … of all sandboxes of an instance
    #[arg(long, value_name = "SIZE")]
    max_instance_memory: Option<Size>,
    /// Most memory that a host holds for a sandbox: bodies in flight, header fields, handles
    #[arg(long, value_name = "SIZE")]
    max_buffer: Option<Size>,
    /// Most CPU time of a request, such as 500ms
    #[arg(long, value_name = "TIME")]
    max_cpu: Option<Interval>,
    /// Most wall-clock time of a request
    #[arg(long, value_name = "TIME")]
    max_time: Option<Interval>,
    /// Longest time to the first byte of a response
    #[arg(long, value_name = "TIME")]
    max_first_byte: Option<Interval>,
    /// Longest time without a byte of a stream
    #[arg(long, value_name = "TIME")]
    max_idle: Option<Interval>,
    /// Longest request body
    #[arg(long, value_name = "SIZE")]
    max_request_body: Option<Size>,
    /// Longest response body
    #[arg(long, value_name = "SIZE")]
    max_response_body: Option<Size>,
    /// Most outbound requests of a request
    #[arg(long, value_name = "N")]
    max_outbound_requests: Option<u32>,
    /// Most outbound requests in flight of a request
    #[arg(long, value_name = "N")]
    max_outbound_concurrent: Option<u32>,
    /// Most bytes of the outbound requests of a request
    #[arg(long, value_name = "SIZE")]
    max_outbound: Option<Size>,
    /// Most requests at once in an instance
    #[arg(long, value_name = "N")]
    max_concurrency: Option<u32>,
    /// Most requests that wait at an instance
    #[arg(long, value_name = "N")]
    max_queue: Option<u32>,
    /// Longest component
    #[arg(long, value_name = "SIZE")]
    max_component: Option<Size>,
    /// Most instances of an app
    #[arg(long, value_name = "N")]
    max_instances: Option<u32>,
    /// Most apps of an organization
    #[arg(long, value_name = "N")]
    max_apps: Option<u32>,
    /// Linear memory of an app on one host
    #[arg(long, value_name = "SIZE")]
    app_memory: Option<Size>,
    /// Memory that one host holds for an app
    #[arg(long, value_name = "SIZE")]
    app_buffer: Option<Size>,
    /// Outbound requests in flight of an app on one host
    #[arg(long, value_name = "N")]
    app_outbound_concurrent: Option<u32>,
    /// Log bytes of an app on one host in a second
    #[arg(long, value_name = "SIZE")]
    log_rate: Option<Size>,
    /// An app's share of the CPU beside other apps, 1 to 1000 (100 where nothing is set)
    #[arg(long, value_name = "N")]
    cpu_weight: Option<u32>,
    /// CPU of an app on one host, in thousandths of a core; slowed beyond
    #[arg(long, value_name = "N")]
    cpu_cap_millis: Option<u32>,
    /// Clocks that are too coarse to time a neighbour with
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    coarse_clocks: Option<bool>,
    /// Whether outbound requests may reach private addresses
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    allow_private_egress: Option<bool>,
}

impl Settings {
    fn policy(self) -> Policy {
        let bytes = |size: Option<Size>| size.map(|s| -> Bytes { s.0 });
        let millis = |time: Option<Interval>| time.map(|t| -> Millis { t.0 });
        Policy {
            isolation: self.isolation,
            group: self.group,
            max_memory_bytes: bytes(self.max_memory),
            max_instance_memory_bytes: bytes(self.max_instance_memory),
            max_buffer_bytes: bytes(self.max_buffer),
            max_cpu_ms: millis(self.max_cpu),
            max_time_ms: millis(self.max_time),
            max_first_byte_ms: millis(self.max_first_byte),
            max_idle_ms: millis(self.max_idle),
            max_request_body_bytes: bytes(self.max_request_body),
            max_response_body_bytes: bytes(self.max_response_body),
            max_outbound_requests: self.max_outbound_requests,
            max_outbound_concurrent: self.max_outbound_concurrent,
            max_outbound_bytes: bytes(self.max_outbound),
            max_concurrency: self.max_concurrency,
            max_queue: self.max_queue,
            max_component_bytes: bytes(self.max_component),
            max_instances: self.max_instances,
            max_apps: self.max_apps,
            app_memory_bytes: bytes(self.app_memory),
            app_buffer_bytes: bytes(self.app_buffer),
            app_outbound_concurrent: self.app_outbound_concurrent,
            log_bytes_per_s: bytes(self.log_rate),
            cpu_weight: self.cpu_weight,
            cpu_cap_millis: self.cpu_cap_millis,
            coarse_clocks: self.coarse_clocks,
            allow_private_egress: self.allow_private_egress,
        }
    }
}

impl ScopeArgs {
    async fn scope(&self, client: &AdminClient) -> Result<PolicyScope> {
        Ok(match (&self.org, &self.space, &self.app) {
            (None, None, None) => PolicyScope::Cluster,
            (Some(org), Some(space), _) => PolicyScope::Space(org.clone(), space.clone()),
            (Some(org), None, Some(app)) => PolicyScope::App(org.clone(), app.clone()),
            (Some(org), None, None) => PolicyScope::Org(org.clone()),
            (None, _, Some(app)) => match client.get_app(app).await {
                Ok(found) => PolicyScope::App(found.value.org, app.clone()),
                Err(p) if p.kind == ProblemKind::NotFound => {
                    return Err(Failure::new(Code::NotFound, format!("there is no app {app} yet"))
                        .next(format!("the same with --org ORG --app {app}, for the app that will be"))
                        .into());
                }
                Err(p) => return Err(p.into()),
            },
            (None, Some(_), None) => unreachable!("a space requires an org"),
        })
    }
}

/// A setting by the name that `policy set`, or the API, has for it.
fn field_of(name: &str) -> Result<&'static str> {
    let plain = name.trim_start_matches("--").replace('-', "_");
    let plain = if plain == "log_rate" { "log_bytes_per_s".to_owned() } else { plain };
    let spellings = [plain.clone(), format!("{plain}_bytes"), format!("{plain}_ms")];
    let found = Policy::FIELDS.iter().find(|f| spellings.iter().any(|s| s == *f)).copied();
    found.ok_or_else(|| {
        Failure::new(Code::Usage, format!("there is no setting {name:?}"))
            .next("marcato policy set --help lists them")
            .into()
    })
}

pub(crate) async fn run(command: PolicyCommand, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    match command {
        PolicyCommand::List => list(&client, out).await,
        PolicyCommand::Show(args) => {
            let scope = args.scope(&client).await?;
            let view = client.get_policy(&scope).await?.value;
            if out.json { out.value(&view) } else { print(out, &view) }
        }
        PolicyCommand::Set(args) => {
            let SetArgs { scope, settings } = *args;
            let (scope, settings) = (scope.scope(&client).await?, settings.policy());
            change(&client, &scope, out, |policy| policy.overlay(&settings)).await
        }
        PolicyCommand::Unset(args) => unset(&client, args, out).await,
    }
}

async fn unset(client: &AdminClient, args: UnsetArgs, out: Output) -> Result<()> {
    let fields = args.settings.iter().map(|s| field_of(s)).collect::<Result<Vec<_>>>()?;
    let scope = args.scope.scope(client).await?;
    if fields.is_empty() {
        confirm(&format!("Remove all that is set for {scope}?"), args.yes)?;
        client.delete_policy(&scope, None).await?;
        return out.done(&serde_json::json!({ "unset": scope }), format!("{scope} sets nothing any more"));
    }
    change(client, &scope, out, |policy| {
        for field in &fields {
            policy.unset(field);
        }
    })
    .await
}

/// Reads, changes and writes back what nobody else has changed in between.
async fn change(client: &AdminClient, scope: &PolicyScope, out: Output, edit: impl Fn(&mut Policy)) -> Result<()> {
    for attempt in 1.. {
        let found = client.get_policy(scope).await?;
        let mut policy = found.value.policy;
        edit(&mut policy);
        match client.put_policy(scope, policy, Some(found.etag)).await {
            Ok(view) if out.json => return out.value(&view.value),
            Ok(view) => return print(out, &view.value),
            Err(p) if p.kind == ProblemKind::PreconditionFailed && attempt < ATTEMPTS => {}
            Err(p) => return Err(p.into()),
        }
    }
    unreachable!("the loop has no end")
}

/// The settings with their values in words.
fn values(policy: &Policy) -> Vec<(&'static str, String)> {
    let Ok(serde_json::Value::Object(map)) = serde_json::to_value(policy) else { return Vec::new() };
    let text = |field: &'static str, value: &serde_json::Value| match value {
        serde_json::Value::Number(n) => amount(field, n.as_u64().unwrap_or(0)),
        serde_json::Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    Policy::FIELDS.iter().filter_map(|f| map.get(*f).map(|v| (*f, text(f, v)))).collect()
}

fn rows(effective: &Effective) -> Vec<Vec<String>> {
    let source = |field: &str| dash(effective.source(field));
    values(&effective.policy).into_iter().map(|(field, value)| vec![field.into(), value, source(field)]).collect()
}

fn print(out: Output, view: &PolicyView) -> Result<()> {
    match (&view.updated_at, &view.updated_by) {
        (Some(at), Some(by)) => out.line(format!("{}, set by {by} at {}", view.scope, time(*at)))?,
        _ => out.line(format!("{} sets nothing itself", view.scope))?,
    }
    let empty = "nothing is set here nor further out; next: marcato policy set --help";
    out.table(&["SETTING", "VALUE", "SET BY"], rows(&view.effective), empty)
}

async fn list(client: &AdminClient, out: Output) -> Result<()> {
    let page = client.list_policies().await?;
    if out.json {
        return out.value(&page);
    }
    let words = |policy: &Policy| {
        let words: Vec<String> = values(policy).into_iter().map(|(field, value)| format!("{field} {value}")).collect();
        words.join(", ")
    };
    let rows = page.items.iter().map(|p| {
        vec![p.scope.to_string(), words(&p.policy), dash(p.updated_by.as_ref()), dash(p.updated_at.map(time))]
    });
    out.table(&["SCOPE", "SETS", "BY", "AT"], rows.collect(), "no policies; next: marcato policy set --help")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: PolicyCommand,
    }

    fn parse(line: &str) -> Result<PolicyCommand, clap::Error> {
        Line::try_parse_from(std::iter::once("policy").chain(line.split(' '))).map(|l| l.command)
    }

    #[test]
    fn every_setting_has_a_flag_and_a_name_to_remove_it_by() {
        let all = "set --isolation process --group g --max-memory 256MiB --max-instance-memory 1GiB --max-buffer 1MiB \
                   --max-cpu 500ms --max-time 3s --max-first-byte 1s --max-idle 1s --max-request-body 1MiB \
                   --max-response-body 1MiB --max-outbound-requests 3 --max-outbound-concurrent 2 --max-outbound 1MiB \
                   --max-concurrency 5 --max-queue 6 --max-component 9MiB --max-instances 7 --max-apps 8 \
                   --app-memory 1GiB --app-buffer 2MiB --app-outbound-concurrent 4 --log-rate 64KiB --cpu-weight 10 \
                   --cpu-cap-millis 500 --coarse-clocks --allow-private-egress false";
        let PolicyCommand::Set(args) = parse(&all.split_whitespace().collect::<Vec<_>>().join(" ")).unwrap() else {
            panic!("not set");
        };
        let policy = args.settings.policy();
        let set: Vec<&str> = values(&policy).into_iter().map(|(field, _)| field).collect();
        assert_eq!(set, Policy::FIELDS);
        assert_eq!(values(&policy)[2].1, "256 MiB");
        for word in all.split_whitespace().filter(|w| w.starts_with("--")) {
            let field = field_of(word).unwrap();
            assert!(Policy::FIELDS.contains(&field), "{word}");
        }
        assert_eq!(field_of("max_memory_bytes").unwrap(), "max_memory_bytes");
        assert!(field_of("max").is_err());
    }

    #[test]
    fn scopes_and_settings_that_make_no_sense_are_refused() {
        for line in ["set", "set --org a", "show --space s", "show --org a --space s --app x", "set --isolation vm"] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in ["show", "show --org a --space s", "show --app x", "unset --org a isolation", "list"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }
}
