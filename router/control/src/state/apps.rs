//! Apps and their routes.

use marcato_api::{App, AppName, Route, StoreRevision};

use super::{Deed, State, StateResult, encode, keys, page};
use crate::store::{Expected, Listing, Txn, Wish};

impl State {
    /// An app with its version.
    pub async fn app(&self, name: &AppName) -> StateResult<Option<(App, StoreRevision)>> {
        self.get(&keys::app(name)).await
    }

    /// A page of apps by name.
    pub async fn apps(
        &self,
        after: Option<&AppName>,
        limit: usize,
    ) -> StateResult<(Vec<(App, StoreRevision)>, Option<String>)> {
        let listing = Listing { after: after.map(keys::app), ..Listing::of(keys::APPS, limit.saturating_add(1)) };
        Ok(page(self.list(listing).await?, limit, |(app, _): &(App, _)| app.name.to_string()))
    }

    /// Which app has this route.
    pub async fn route_owner(&self, route: &Route) -> StateResult<Option<AppName>> {
        Ok(self.get(&keys::route(route)).await?.map(|(app, _)| app))
    }

    /// The route of a conflict's key, when it is one.
    pub(crate) fn route_of_key(key: &str) -> Option<Route> {
        key.strip_prefix(keys::ROUTES).and_then(|text| Route::parse(text).ok())
    }

    /// Writes a new app. Errors: a conflict on the app's key, or on a route's that is taken.
    pub async fn create_app(&self, app: &App, deed: &Deed) -> StateResult<StoreRevision> {
        self.create_app_with(app, Txn::new(), deed).await
    }

    /// Writes a new app. `extra` adds checks, for example that its org has room for it.
    /// Errors: a conflict on the app's key, on a route's that is taken, or on one of `extra`'s.
    pub(crate) async fn create_app_with(&self, app: &App, extra: Txn, deed: &Deed) -> StateResult<StoreRevision> {
        let key = keys::app(&app.name);
        let txn = take_routes(extra.check(&key, Expected::Absent), app, &[])?.put(key, encode(app)?);
        self.commit(txn, deed).await
    }

    /// Replaces an app that is as `old`. Errors: a conflict on its key, or on a new route's.
    pub async fn replace_app(&self, old: &(App, StoreRevision), new: &App, deed: &Deed) -> StateResult<StoreRevision> {
        let mut txn = replacement(old, new)?;
        if let Some(number) = new.current.filter(|n| old.0.current != Some(*n)) {
            // It may be trimmed at this very moment.
            txn = txn.check(keys::revision(&new.name, number), Expected::Present);
        }
        self.commit(txn, deed).await
    }

    /// Removes an app that is as `old`, with its revisions and routes.
    pub async fn remove_app(&self, old: &(App, StoreRevision), deed: &Deed) -> StateResult<()> {
        let (app, version) = old;
        let key = keys::app(&app.name);
        let mut txn = Txn::new().check(&key, Expected::Revision(*version)).delete(key);
        for route in &app.routes {
            txn = txn.delete(keys::route(route));
        }
        let (_, found) = self.store.read(vec![Wish::Prefix(keys::revisions(&app.name))]).await?;
        for revision in found.into_iter().flatten() {
            txn = txn.delete(revision.key);
        }
        self.commit(txn, deed).await.map(drop)
    }
}

/// The transaction that replaces an app and moves its routes.
pub(super) fn replacement((old, version): &(App, StoreRevision), new: &App) -> StateResult<Txn> {
    let key = keys::app(&new.name);
    let mut txn = Txn::new().check(&key, Expected::Revision(*version));
    for route in old.routes.iter().filter(|r| !new.routes.contains(r)) {
        txn = txn.delete(keys::route(route));
    }
    Ok(take_routes(txn, new, &old.routes)?.put(key, encode(new)?))
}

fn take_routes(mut txn: Txn, app: &App, had: &[Route]) -> StateResult<Txn> {
    for route in app.routes.iter().filter(|r| !had.contains(r)) {
        let key = keys::route(route);
        txn = txn.check(&key, Expected::Absent).put(key, encode(&app.name)?);
    }
    Ok(txn)
}
