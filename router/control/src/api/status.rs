//! What `app show` says: desired beside actual.

use marcato_api::{ApiResult, App, AppName, AppState, AppStatus, HostState, InstancePhase, InstanceView, Role, Route};

use super::revisions::hidden;
use super::session::{OrProblem, Session};
use super::{Shared, policies};
use crate::observed::Observed;

impl Session {
    pub(crate) async fn app_status(&self, name: &AppName) -> ApiResult<AppStatus> {
        let (app, etag) = self.visible_app(name, Role::Viewer, "app.status").await?;
        let observed = self.api.observed.snapshot();
        let revision = match app.current {
            Some(number) => self.api.state.revision(name, number).await.or_problem()?.map(hidden),
            None => None,
        };
        let instances = instances(name, &observed);
        let mut notes = observed.notes.get(name).cloned().unwrap_or_default();
        if app.state == AppState::Started && app.current.is_none() {
            notes.push("nothing was pushed yet".into());
        }
        if let Some(failure) = revision.as_ref().and_then(|r| r.failure.as_ref()) {
            notes.push(format!("the current revision failed: {failure}"));
        }
        notes.extend(policies::notes(&self.effective(&app).await?, &app, revision.as_ref()));
        for (host, seen) in &observed.hosts {
            if seen.state == HostState::Suspected && instances.iter().any(|i| i.host == *host) {
                let why = seen.error.as_deref().unwrap_or("no answer");
                notes.push(format!("the host {host} does not answer ({why}); its instances are shown as last seen"));
            }
        }
        notes.dedup();
        Ok(AppStatus { urls: urls(&self.api, &app), app, etag, revision, instances, notes })
    }
}

fn instances(app: &AppName, observed: &Observed) -> Vec<InstanceView> {
    let mut found: Vec<InstanceView> = observed
        .hosts
        .iter()
        .filter_map(|(id, host)| Some((id, host.inventory.as_ref()?)))
        .flat_map(|(id, inventory)| inventory.instances.iter().map(move |i| (id, i)))
        .filter(|(_, i)| i.app == *app)
        // A host that was given up said so before others stood in for what it had.
        .filter(|(host, i)| {
            let up = observed.hosts.get(*host).is_some_and(|h| h.state == HostState::Up);
            up || observed.placed.get(*host).is_none_or(|placed| placed.contains(&i.id))
        })
        .map(|(host, i)| InstanceView {
            id: i.id.clone(),
            host: host.clone(),
            revision: i.revision,
            phase: i.phase,
            in_flight: i.in_flight,
            reason: i.reason.clone(),
        })
        .collect();
    let order = |p: InstancePhase| match p {
        InstancePhase::Ready => 0,
        InstancePhase::Pending => 1,
        InstancePhase::Draining => 2,
        InstancePhase::Failed => 3,
    };
    found.sort_by(|a, b| (b.revision, order(a.phase), &a.id).cmp(&(a.revision, order(b.phase), &b.id)));
    found
}

fn urls(api: &Shared, app: &App) -> Vec<String> {
    let url = |scheme: &str, port: Option<u16>, usual: u16, route: &Route| {
        let port = port?;
        let port = if port == usual { String::new() } else { format!(":{port}") };
        Some(format!("{scheme}://{}{port}{}", route.host, route.path))
    };
    let https = app.routes.iter().filter_map(|r| url("https", api.https_port, 443, r));
    let http = app.routes.iter().filter_map(|r| url("http", api.http_port, 80, r));
    https.chain(http).collect()
}
