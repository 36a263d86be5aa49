//! `routes`: where an app's requests come from.

use anyhow::Result;
use clap::{Args, Subcommand};
use marcato_api::{AdminApi, App, AppName, AppUpdate, ProblemKind, Route};

use crate::failure::{Code, Failure};
use crate::output::Output;

/// How often a change is tried anew when somebody else changed the app in between.
const ATTEMPTS: u32 = 5;

/// Show or change an app's routes
#[derive(Debug, Subcommand)]
pub(crate) enum RoutesCommand {
    /// Show an app's routes
    List {
        /// Which app
        app: AppName,
    },
    /// Add a route
    Add(RouteArgs),
    /// Remove a route
    Remove(RouteArgs),
}

/// A route of an app.
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// Which app
    app: AppName,
    /// `host` or `host/path`, such as shop.example.org/api
    #[arg(value_parser = Route::parse)]
    route: Route,
}

pub(crate) async fn run(command: RoutesCommand, out: Output) -> Result<()> {
    match command {
        RoutesCommand::List { app } => {
            let app = crate::login::client()?.get_app(&app).await?.value;
            if out.json {
                return out.value(&app.routes);
            }
            let rows = app.routes.iter().map(|r| vec![r.host.clone(), r.path.clone()]).collect();
            out.table(&["HOST", "PATH"], rows, &format!("no routes; next: marcato routes add {} HOST", app.name))
        }
        RoutesCommand::Add(RouteArgs { app, route }) => {
            let new = edit(&app, |routes| {
                if !routes.contains(&route) {
                    routes.push(route.clone());
                }
                Ok(())
            })
            .await?;
            out.done(&new.routes, format!("{route} leads to {app}"))
        }
        RoutesCommand::Remove(RouteArgs { app, route }) => {
            let new = edit(&app, |routes| match routes.iter().position(|r| *r == route) {
                Some(at) => {
                    routes.remove(at);
                    Ok(())
                }
                None => Err(Failure::new(Code::NotFound, format!("{app} has no route {route}"))
                    .next(format!("marcato routes list {app}"))),
            })
            .await?;
            out.done(&new.routes, format!("{route} leads to {app} no more"))
        }
    }
}

/// Reads, changes and writes the routes, demanding that nobody changed the app in between.
async fn edit(app: &AppName, change: impl Fn(&mut Vec<Route>) -> Result<(), Failure>) -> Result<App> {
    let client = crate::login::client()?;
    let mut attempt = 1;
    loop {
        let current = client.get_app(app).await?;
        let mut routes = current.value.routes.clone();
        change(&mut routes)?;
        if routes == current.value.routes {
            return Ok(current.value);
        }
        let update = AppUpdate { routes: Some(routes), ..AppUpdate::default() };
        match client.update_app(app, update, Some(current.etag)).await {
            Ok(new) => return Ok(new.value),
            Err(p) if p.kind == ProblemKind::PreconditionFailed && attempt < ATTEMPTS => attempt += 1,
            Err(p) => return Err(p.into()),
        }
    }
}
