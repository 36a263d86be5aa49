//! Reports: sums over hosts, by period, org and app, in pages.

use jiff::Timestamp;
use marcato_api::{AppName, HostId, OrgName, UsagePeriod, UsageRow};
use rusqlite::{Connection, params};

use super::{UsageError, UsageStore, loaded};

/// What a report is of, resolved.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// From this hour on, in seconds since 1970.
    pub(crate) from: i64,
    /// Up to this hour, without it.
    pub(crate) to: i64,
    pub(crate) org: Option<OrgName>,
    pub(crate) app: Option<AppName>,
    pub(crate) by: UsagePeriod,
    /// After this row.
    pub(crate) after: Option<Place>,
    pub(crate) limit: usize,
}

/// A row's place in a report: period, org, app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place(i64, String, String);

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl std::str::FromStr for Place {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || "expected the last page's next".to_owned();
        let mut parts = s.split('.');
        let (Some(start), Some(org), Some(app), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        OrgName::new(org).map_err(|_| wrong())?;
        if !app.is_empty() {
            AppName::new(app).map_err(|_| wrong())?;
        }
        Ok(Self(start.parse().map_err(|_| wrong())?, org.to_owned(), app.to_owned()))
    }
}

/// The begin of the period that an hour is in (UTC), as SQL.
const fn period(by: UsagePeriod) -> &'static str {
    match by {
        UsagePeriod::Hour => "hour",
        UsagePeriod::Day => "hour - hour % 86400",
        UsagePeriod::Month => "CAST(strftime('%s', hour, 'unixepoch', 'start of month') AS INTEGER)",
    }
}

impl UsageStore {
    /// Rows in the order of period, org and app, and where the next page begins.
    pub(crate) async fn report(&self, wish: Wish) -> Result<(Vec<UsageRow>, Option<Place>), UsageError> {
        self.reading(move |c| read(c, &wish)).await
    }

    /// When each host was last heard.
    pub(crate) async fn heard_at(&self) -> Result<Vec<(HostId, Timestamp)>, UsageError> {
        self.reading(|c| {
            let mut query = c.prepare_cached("SELECT host, heard_at FROM hosts ORDER BY host")?;
            let rows = query.query_map([], |r| Ok((r.get::<_, String>(0)?, r.get::<_, i64>(1)?)))?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            let parsed = |(host, at): (String, i64)| Some((host.parse().ok()?, Timestamp::from_second(at).ok()?));
            Ok(rows.into_iter().filter_map(parsed).collect())
        })
        .await
    }
}

fn read(connection: &Connection, wish: &Wish) -> rusqlite::Result<(Vec<UsageRow>, Option<Place>)> {
    let period = period(wish.by);
    // What services store is no flow: of a period, the hour in which it was the most.
    let sql = format!(
        "WITH wanted AS (
           SELECT {period} AS start, org, app, requests, cpu_us, memory_kb_s, bytes_in, bytes_out, 0 AS bytes_stored
           FROM used WHERE hour >= ?1 AND hour < ?2 AND (?3 IS NULL OR org = ?3) AND (?4 IS NULL OR app = ?4)
           UNION ALL
           SELECT start, org, app, 0, 0, 0, 0, 0, max(bytes) FROM (
             SELECT {period} AS start, org, app, hour, sum(bytes) AS bytes
             FROM stored WHERE hour >= ?1 AND hour < ?2 AND (?3 IS NULL OR org = ?3) AND (?4 IS NULL OR app = ?4)
             GROUP BY hour, org, app)
           GROUP BY start, org, app)
         SELECT start, org, app, sum(requests), sum(cpu_us), sum(memory_kb_s), sum(bytes_in), sum(bytes_out),
                sum(bytes_stored)
         FROM wanted WHERE ?5 IS NULL OR (start, org, app) > (?5, ?6, ?7)
         GROUP BY start, org, app ORDER BY start, org, app LIMIT ?8"
    );
    let mut query = connection.prepare_cached(&sql)?;
    let after = wish.after.as_ref();
    let bounds = params![
        wish.from,
        wish.to,
        wish.org.as_ref().map(OrgName::as_str),
        wish.app.as_ref().map(AppName::as_str),
        after.map(|p| p.0),
        after.map(|p| &p.1),
        after.map(|p| &p.2),
        i64::try_from(wish.limit).unwrap_or(i64::MAX - 1) + 1,
    ];
    let rows = query.query_map(bounds, |r| {
        let number = |at| r.get::<_, i64>(at).map(loaded);
        let place = Place(r.get(0)?, r.get(1)?, r.get(2)?);
        Ok((place, [number(3)?, number(4)?, number(5)?, number(6)?, number(7)?, number(8)?]))
    })?;
    let mut rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    let more = rows.len() > wish.limit;
    rows.truncate(wish.limit);
    let next = rows.last().filter(|_| more).map(|(place, _)| place.clone());
    Ok((rows.into_iter().filter_map(row).collect(), next))
}

/// `None`: names that are no names, which we never wrote.
fn row((Place(start, org, app), numbers): (Place, [u64; 6])) -> Option<UsageRow> {
    let [requests, cpu_us, memory_kb_s, bytes_in, bytes_out, bytes_stored] = numbers;
    Some(UsageRow {
        start: Timestamp::from_second(start).ok()?,
        org: org.parse().ok()?,
        app: if app.is_empty() { None } else { Some(app.parse().ok()?) },
        requests,
        cpu_ms: (cpu_us + 500) / 1_000,
        memory_mb_s: (memory_kb_s + 500) / 1_000,
        bytes_in,
        bytes_out,
        bytes_stored,
    })
}
