//! Apps: make, change, delete, list.

use jiff::Timestamp;
use marcato_api::{
    ApiResult, App, AppName, AppState, AppSummary, AppUpdate, Etag, InstancePhase, NewApp, PageOf, Problem,
    ProblemKind, RevisionNumber, Role, Route, StoreRevision,
};

use super::session::{OrProblem, Session, at_version, invalid};
use super::{ATTEMPTS, policies, state_problem};
use crate::state::{State, StateError};

/// Most instances of an app.
const MAX_INSTANCES: u32 = 100;
/// Most routes of an app.
const MAX_ROUTES: usize = 64;

/// 1 to 1,000.
pub(super) fn limit(limit: u32) -> ApiResult<usize> {
    match limit {
        1..=1_000 => Ok(limit as usize),
        _ => Err(invalid("limit", format!("{limit} is not within 1 to 1000"))),
    }
}

fn check_instances(instances: u32) -> ApiResult<()> {
    if instances <= MAX_INSTANCES {
        return Ok(());
    }
    Err(invalid("instances", format!("{instances} is not within 0 to {MAX_INSTANCES}")))
}

fn check_routes(routes: &[Route]) -> ApiResult<()> {
    if routes.len() > MAX_ROUTES {
        return Err(invalid("routes", format!("an app may have at most {MAX_ROUTES} routes")));
    }
    for (at, route) in routes.iter().enumerate() {
        route.validate().map_err(|why| invalid(&format!("routes[{at}]"), why))?;
        if routes[..at].contains(route) {
            return Err(invalid(&format!("routes[{at}]"), format!("{route} is named twice")));
        }
    }
    Ok(())
}

impl Session {
    pub(crate) async fn list_apps(&self, after: Option<String>, wanted: u32) -> ApiResult<PageOf<AppSummary>> {
        let wanted = limit(wanted)?;
        self.may_look("app.list", "apps").await?;
        let mut after: Option<AppName> =
            after.map(|a| a.parse()).transpose().map_err(|e| invalid("after", format!("{e}")))?;
        let observed = self.api.observed.snapshot();
        let mut items = Vec::new();
        loop {
            let (found, next) = self.api.state.apps(after.as_ref(), wanted).await.or_problem()?;
            let visible = found.into_iter().filter(|(a, _)| self.token.org.as_ref().is_none_or(|o| *o == a.org));
            for (app, etag) in visible {
                if items.len() == wanted {
                    // A place further than the last one shown: where it ended is known from that one.
                    let next = items.last().map(|s: &AppSummary| s.app.name.to_string());
                    return Ok(PageOf { items, next });
                }
                let statuses = observed.hosts.values().filter_map(|h| h.inventory.as_ref()).flat_map(|i| &i.instances);
                let ready = statuses.filter(|i| i.app == app.name && i.phase == InstancePhase::Ready).count();
                items.push(AppSummary { app, ready: u32::try_from(ready).unwrap_or(u32::MAX), etag });
            }
            match next {
                Some(next) if items.len() < wanted => after = next.parse().ok(),
                next => return Ok(PageOf { items, next }),
            }
        }
    }

    pub(crate) async fn get_app(&self, app: &AppName) -> ApiResult<Etag<App>> {
        let (value, etag) = self.visible_app(app, Role::Viewer, "app.get").await?;
        Ok(Etag { value, etag })
    }

    pub(crate) async fn put_app(&self, app: &AppName, new: NewApp) -> ApiResult<Etag<App>> {
        let target = format!("app/{app}");
        self.may(Role::Deployer, Some(&new.org), "app.create", &target).await?;
        let result = self.ensure_app(app, new).await;
        self.failed("app.create", target, result).await
    }

    async fn ensure_app(&self, name: &AppName, new: NewApp) -> ApiResult<Etag<App>> {
        check_instances(new.instances)?;
        check_routes(&new.routes)?;
        for _ in 0..ATTEMPTS {
            if let Some((value, etag)) = self.api.state.app(name).await.or_problem()? {
                return same_place(value, etag, &new);
            }
            if let Some(made) = self.make_app(name, &new).await? {
                return Ok(made);
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    /// `None`: someone made one at the same moment; look again.
    async fn make_app(&self, name: &AppName, new: &NewApp) -> ApiResult<Option<Etag<App>>> {
        let now = Timestamp::now();
        let mut routes = new.routes.clone();
        if routes.is_empty() {
            routes.push(Route { host: format!("{name}.{}", self.api.domain), path: "/".into() });
            check_routes(&routes)?;
        }
        let app = App {
            name: name.clone(),
            org: new.org.clone(),
            space: new.space.clone(),
            state: AppState::Started,
            instances: new.instances,
            current: None,
            stable: None,
            restarts: 0,
            routes,
            created_at: now,
            updated_at: now,
        };
        let detail = format!("org {}, space {}, {} instances", app.org, app.space, app.instances);
        let effective = self.effective(&app).await?;
        policies::check_instances(&effective, app.instances)?;
        let room = self.room_for_app(&app.org, &effective).await?;
        let deed = self.deed("app.create", format!("app/{name}"), detail);
        match self.api.state.create_app_with(&app, room, &deed).await {
            Ok(etag) => Ok(Some(Etag { value: app, etag })),
            Err(e) if e.conflict().is_some_and(|k| State::route_of_key(k).is_none()) => Ok(None),
            Err(e) => Err(self.route_taken(&e).await),
        }
    }

    /// A conflict on a route's key names the app that has it.
    async fn route_taken(&self, e: &StateError) -> Problem {
        let Some(route) = e.conflict().and_then(State::route_of_key) else { return state_problem(e) };
        let owner = self.api.state.route_owner(&route).await.ok().flatten();
        let owner = owner.map_or_else(|| "another app".to_owned(), |o| format!("the app {o}"));
        Problem::new(ProblemKind::Conflict, format!("the route {route} belongs to {owner}")).with_field("routes")
    }

    pub(crate) async fn update_app(
        &self,
        app: &AppName,
        update: AppUpdate,
        if_match: Option<StoreRevision>,
    ) -> ApiResult<Etag<App>> {
        let action = action_of(&update);
        self.visible_app(app, Role::Deployer, action).await?;
        let result = self.change_app(app, &update, if_match, action).await;
        self.failed(action, format!("app/{app}"), result).await
    }

    async fn change_app(
        &self,
        name: &AppName,
        update: &AppUpdate,
        if_match: Option<StoreRevision>,
        action: &'static str,
    ) -> ApiResult<Etag<App>> {
        if let Some(instances) = update.instances {
            check_instances(instances)?;
        }
        if let Some(routes) = &update.routes {
            check_routes(routes)?;
        }
        for _ in 0..ATTEMPTS {
            let old = self.visible_app(name, Role::Deployer, action).await?;
            at_version(old.1, if_match)?;
            if let Some(number) = update.current {
                match self.api.state.revision(name, number).await.or_problem()? {
                    Some(revision) if old.0.current != Some(number) => self.check_current(&old.0, &revision).await?,
                    Some(_) => {}
                    None => return Err(invalid("current", self.no_revision(name, number).await)),
                }
            }
            // Fewer is always allowed.
            if let Some(instances) = update.instances.filter(|n| *n > old.0.instances) {
                policies::check_instances(&self.effective(&old.0).await?, instances)?;
            }
            let new = updated(&old.0, update);
            if new == old.0 {
                return Ok(Etag { value: new, etag: old.1 });
            }
            let new = App { updated_at: Timestamp::now(), ..new };
            let deed = self.deed(action, format!("app/{name}"), difference(&old.0, &new));
            match self.api.state.replace_app(&old, &new, &deed).await {
                Ok(etag) => return Ok(Etag { value: new, etag }),
                // A change in between: look again, with or without a condition.
                Err(e) if e.conflict().is_some_and(|k| State::route_of_key(k).is_none()) => {}
                Err(e) => return Err(self.route_taken(&e).await),
            }
        }
        Err(state_problem(&StateError::Contended))
    }

    pub(crate) async fn delete_app(&self, app: &AppName, if_match: Option<StoreRevision>) -> ApiResult<()> {
        let target = format!("app/{app}");
        for _ in 0..ATTEMPTS {
            let old = self.visible_app(app, Role::Deployer, "app.delete").await?;
            self.failed("app.delete", target.clone(), at_version(old.1, if_match)).await?;
            let deed = self.deed("app.delete", target.clone(), "with its revisions and routes");
            match self.api.state.remove_app(&old, &deed).await {
                Ok(()) => return Ok(()),
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(state_problem(&e)),
            }
        }
        Err(state_problem(&StateError::Contended))
    }
}

fn same_place(value: App, etag: StoreRevision, new: &NewApp) -> ApiResult<Etag<App>> {
    if value.org == new.org && value.space == new.space {
        return Ok(Etag { value, etag });
    }
    Err(Problem::new(ProblemKind::Conflict, format!("the name {} is taken in another org or space", value.name)))
}

fn updated(old: &App, update: &AppUpdate) -> App {
    let mut new = old.clone();
    new.state = update.state.unwrap_or(new.state);
    new.instances = update.instances.unwrap_or(new.instances);
    new.current = update.current.or(new.current);
    if let Some(routes) = &update.routes {
        new.routes.clone_from(routes);
    }
    new.restarts += u64::from(update.restart == Some(true));
    new
}

fn action_of(update: &AppUpdate) -> &'static str {
    match update {
        AppUpdate { state: Some(AppState::Started), .. } => "app.start",
        AppUpdate { state: Some(AppState::Stopped), .. } => "app.stop",
        AppUpdate { current: Some(_), .. } => "app.rollback",
        AppUpdate { instances: Some(_), .. } => "app.scale",
        AppUpdate { routes: Some(_), .. } => "app.routes",
        AppUpdate { restart: Some(true), .. } => "app.restart",
        _ => "app.update",
    }
}

/// What changed, for the audit log.
fn difference(old: &App, new: &App) -> String {
    let mut words = Vec::new();
    let number = |n: Option<RevisionNumber>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    if old.state != new.state {
        words.push(format!("state {:?} -> {:?}", old.state, new.state).to_lowercase());
    }
    if old.instances != new.instances {
        words.push(format!("instances {} -> {}", old.instances, new.instances));
    }
    if old.current != new.current {
        words.push(format!("revision {} -> {}", number(old.current), number(new.current)));
    }
    if old.restarts != new.restarts {
        words.push(format!("restart {}", new.restarts));
    }
    if old.routes != new.routes {
        let routes: Vec<_> = new.routes.iter().map(Route::to_string).collect();
        words.push(format!("routes {}", routes.join(", ")));
    }
    words.join("; ")
}
