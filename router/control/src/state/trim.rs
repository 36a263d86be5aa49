//! What the state forgets by itself: old revisions and old audit events, so that neither grows without end.
//!
//! Owns: what may go (never what serves, may be rolled back to at once, or runs; never the newest event, from
//! which the numbers go on). Does not own when (`tasks::gc`). Each removal is one transaction with its event.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{App, AppName, Event, Outcome, RevisionNumber, StoreRevision};

use super::{Deed, State, StateError, StateResult, keys};
use crate::store::{Expected, Listing, Order, Txn};

/// Removals in one transaction: a longer one would hold up other writers.
const AT_ONCE: usize = 2_000;
/// Transactions of events in one pass; the next pass goes on.
const ROUNDS: usize = 20;
const DAY: Duration = Duration::from_secs(86_400);

/// How much of the audit log is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventBounds {
    /// This many; a hundredth more is let be, so that not every pass removes one.
    pub(crate) most: u64,
    /// Not older than this; a day more is let be.
    pub(crate) age: Duration,
}

impl State {
    /// Removes the revisions of every app but its newest `keep`, its current and stable one, and those `in_use`.
    /// Answers how many. An app that changes meanwhile is left for the next time.
    pub(crate) async fn trim_revisions(
        &self,
        keep: usize,
        in_use: &BTreeSet<(AppName, RevisionNumber)>,
    ) -> StateResult<usize> {
        let mut trimmed = 0;
        for (app, version) in self.list::<App>(Listing::of(keys::APPS, usize::MAX)).await? {
            match self.trim_app(&app, version, keep, in_use).await {
                Ok(n) => trimmed += n,
                Err(e) if e.conflict().is_some() => {}
                Err(e) => return Err(e),
            }
        }
        Ok(trimmed)
    }

    async fn trim_app(
        &self,
        app: &App,
        version: StoreRevision,
        keep: usize,
        in_use: &BTreeSet<(AppName, RevisionNumber)>,
    ) -> StateResult<usize> {
        let prefix = keys::revisions(&app.name);
        let newest_first = Listing { order: Order::Descending, ..Listing::of(&prefix, usize::MAX) };
        let found = self.store.list(newest_first).await?;
        let numbers = found.iter().skip(keep).filter_map(|v| v.key.strip_prefix(&prefix)?.parse().ok());
        let mut doomed: Vec<RevisionNumber> = numbers
            .map(RevisionNumber)
            .filter(|n| app.current != Some(*n) && app.stable != Some(*n) && !in_use.contains(&(app.name.clone(), *n)))
            .collect();
        // The oldest first, when there are more than go at once.
        doomed.reverse();
        doomed.truncate(AT_ONCE);
        let (Some(first), Some(last)) = (doomed.first(), doomed.last()) else { return Ok(0) };
        let detail = format!("{} revisions from {first} to {last}; the newest {keep} stay", doomed.len());
        // A roll-back writes the app: then one of these may have become the current one.
        let mut txn = Txn::new().check(keys::app(&app.name), Expected::Revision(version));
        for number in &doomed {
            txn = txn.delete(keys::revision(&app.name, *number));
        }
        self.commit(txn, &Deed::system("revision.trim", format!("app/{}", app.name), detail)).await?;
        Ok(doomed.len())
    }

    /// Whether an app of this name ever had this revision: when it is not there now, it was removed.
    pub(crate) async fn was_revision(&self, app: &AppName, number: RevisionNumber) -> StateResult<bool> {
        let last = self.get::<u64>(&keys::last_revision(app)).await?;
        Ok(last.is_some_and(|(last, _)| (1..=last).contains(&number.0)))
    }

    /// Removes the oldest audit events beyond the bounds. Answers how many.
    pub(crate) async fn trim_events(&self, bounds: EventBounds, now: Timestamp) -> StateResult<usize> {
        let mut trimmed = 0;
        for _ in 0..ROUNDS {
            let removed = self.trim_some_events(bounds, now, trimmed > 0).await?;
            trimmed += removed;
            if removed < AT_ONCE {
                break;
            }
        }
        Ok(trimmed)
    }

    /// `begun`: a pass that has begun goes down to the bounds themselves.
    async fn trim_some_events(&self, bounds: EventBounds, now: Timestamp, begun: bool) -> StateResult<usize> {
        let newest = Listing { order: Order::Descending, ..Listing::of(keys::EVENTS, 1) };
        let Some((newest, _)) = self.list::<Event>(newest).await?.pop() else { return Ok(0) };
        let oldest_first = self.list::<Event>(Listing::of(keys::EVENTS, AT_ONCE)).await?;
        let Some((oldest, _)) = oldest_first.first() else { return Ok(0) };
        let limit = now.saturating_sub(bounds.age).unwrap_or(Timestamp::MIN);
        let (slack, slack_age) = if begun { (0, Duration::ZERO) } else { (bounds.most / 100, DAY) };
        let many = newest.sequence - oldest.sequence + 1 > bounds.most + slack;
        let old = oldest.at < limit.saturating_sub(slack_age).unwrap_or(Timestamp::MIN);
        if !many && !old {
            return Ok(0);
        }
        let cut = newest.sequence.saturating_sub(bounds.most);
        let doomed: Vec<u64> = oldest_first
            .iter()
            .map(|(event, _)| event)
            .take_while(|e| e.sequence < newest.sequence && (e.sequence <= cut || e.at < limit))
            .map(|e| e.sequence)
            .collect();
        let (Some(first), Some(last)) = (doomed.first(), doomed.last()) else { return Ok(0) };
        let deed = Deed::system("event.trim", "events", format!("{} events from {first} to {last}", doomed.len()));
        let txn = doomed.iter().fold(Txn::new(), |txn, sequence| txn.delete(keys::event(*sequence)));
        match self.commit_as(txn, &deed, Outcome::Ok).await {
            Ok(_) => Ok(doomed.len()),
            // Very busy: the next pass.
            Err(StateError::Contended) => Ok(0),
            Err(e) => Err(e),
        }
    }
}
