//! What apps used: who may see it, for which time.

use std::time::Duration;

use jiff::Timestamp;
use marcato_api::{ApiResult, HostState, OrgName, Problem, ProblemKind, Role, UsageGap, UsageQuery, UsageReport};

use super::apps::limit;
use super::session::{OrProblem, Session, invalid};
use crate::usage::{HOUR_S, UsageError, Wish, hour_of};

/// What a report is of when it does not say.
const USUAL: Duration = Duration::from_secs(30 * 86_400);
/// Rows of a page when the query does not say.
const ROWS: u32 = 100;
/// A host that was not heard for this long is named.
const SILENT_S: i64 = 60;

fn failed(e: &UsageError) -> Problem {
    tracing::error!(error = ?e, "usage cannot be read");
    Problem::new(ProblemKind::Internal, "usage cannot be read; see the router's log")
}

/// The hours that a query is of: from the first, up to the second without it.
fn hours(query: &UsageQuery, now: Timestamp) -> ApiResult<(i64, i64)> {
    let to = query.to.map_or_else(|| hour_of(now) + HOUR_S, hour_of);
    let usual = i64::try_from(USUAL.as_secs()).unwrap_or(0);
    let from = query.from.map_or(to - usual, hour_of);
    if from >= to {
        return Err(invalid("from", "it is not before `to`; both are cut to the begin of their hour (UTC)"));
    }
    Ok((from, to))
}

impl Session {
    pub(crate) async fn usage(&self, query: UsageQuery) -> ApiResult<UsageReport> {
        let org = self.usage_org(&query).await?;
        let (from, to) = hours(&query, Timestamp::now())?;
        let wish = Wish {
            from,
            to,
            org,
            app: query.app,
            by: query.by,
            after: query.after.map(|a| a.parse()).transpose().map_err(|e: String| invalid("after", e))?,
            limit: limit(query.limit.unwrap_or(ROWS))?,
        };
        let (items, next) = self.api.usage.report(wish).await.map_err(|e| failed(&e))?;
        let gaps = if self.token.org.is_none() { self.gaps().await? } else { Vec::new() };
        Ok(UsageReport { items, next: next.map(|n| n.to_string()), gaps })
    }

    /// The org that the report is of: a token that is limited to one sees that one's alone, also of a name that was
    /// another's before.
    async fn usage_org(&self, query: &UsageQuery) -> ApiResult<Option<OrgName>> {
        let wanted = query.org.as_ref().or(self.token.org.as_ref());
        self.may(Role::Viewer, wanted, "usage.read", "usage").await?;
        Ok(wanted.cloned())
    }

    /// Hosts of which something may be missing.
    async fn gaps(&self) -> ApiResult<Vec<UsageGap>> {
        let heard = self.api.usage.heard_at().await.map_err(|e| failed(&e))?;
        let hosts = self.api.state.hosts().await.or_problem()?;
        let observed = self.api.observed.snapshot();
        let now = Timestamp::now().as_second();
        let gaps = hosts.into_iter().filter_map(|host| {
            let since = heard.iter().find(|(id, _)| *id == host.id).map(|(_, at)| *at);
            let up = observed.hosts.get(&host.id).is_some_and(|h| h.state == HostState::Up);
            let silent = since.is_none_or(|at| now - at.as_second() > SILENT_S);
            (silent || !up).then_some(UsageGap { host: host.id, since })
        });
        Ok(gaps.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_cut_to_hours_and_the_present_one_is_in() {
        let now = Timestamp::from_second(1_000 * HOUR_S + 59).unwrap();
        let query = UsageQuery::default();
        assert_eq!(hours(&query, now).unwrap(), ((1_001 - 720) * HOUR_S, 1_001 * HOUR_S));
        let at = |h: i64| Some(Timestamp::from_second(h * HOUR_S + 7).unwrap());
        let query = UsageQuery { from: at(3), to: at(4), ..UsageQuery::default() };
        assert_eq!(hours(&query, now).unwrap(), (3 * HOUR_S, 4 * HOUR_S));
        let query = UsageQuery { from: at(4), to: at(4), ..UsageQuery::default() };
        assert_eq!(hours(&query, now).unwrap_err().field.as_deref(), Some("from"));
    }
}
