//! `usage`: what apps used, by hour, day or month.

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use marcato_api::{AdminApi, AppName, Bytes, OrgName, UsagePeriod, UsageQuery, UsageReport, UsageRow};

use crate::output::{Output, dash, time};

/// Rows per call.
const PAGE: u32 = 1_000;

/// Show what apps used: requests, CPU, memory, bytes
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// Only this organization
    #[arg(long)]
    org: Option<OrgName>,
    /// Only this app
    #[arg(long)]
    app: Option<AppName>,
    /// From this day or moment on (UTC), such as 2026-11-01 or 2026-11-01T08:00:00Z; absent: 30 days before the end
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<Timestamp>,
    /// Up to this day or moment, without it; absent: now
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<Timestamp>,
    /// One row per hour, day or month (UTC)
    #[arg(long, value_name = "PERIOD", default_value_t = UsagePeriod::Day)]
    by: UsagePeriod,
    /// Comma-separated values with a head, for spreadsheets
    #[arg(long)]
    csv: bool,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    let day = |d: Date| d.to_zoned(TimeZone::UTC).map(|z| z.timestamp()).map_err(|e| e.to_string());
    match (text.parse::<Timestamp>(), text.parse::<Date>()) {
        (Ok(at), _) => Ok(at),
        (_, Ok(date)) if text.len() == 10 => day(date),
        _ => Err("expected a day such as 2026-11-01, or a moment such as 2026-11-01T08:00:00Z".into()),
    }
}

pub(crate) async fn usage(args: UsageArgs, out: Output) -> Result<()> {
    let client = crate::login::client()?;
    let mut query = UsageQuery {
        from: args.from,
        to: args.to,
        org: args.org,
        app: args.app,
        by: args.by,
        after: None,
        limit: Some(PAGE),
    };
    let mut whole = UsageReport { items: Vec::new(), next: None, gaps: Vec::new() };
    loop {
        let page = client.usage(query.clone()).await?;
        let empty = page.items.is_empty();
        whole.items.extend(page.items);
        whole.gaps = page.gaps;
        match page.next {
            Some(next) if !empty => query.after = Some(next),
            _ => break,
        }
    }
    if out.json {
        return out.value(&whole);
    }
    for gap in &whole.gaps {
        let since = gap.since.map_or_else(|| "never heard".to_owned(), |at| format!("last heard {}", time(at)));
        out.note(format!("host {}: {since}; what it metered since then is added later", gap.host));
    }
    if args.csv {
        return csv(out, &whole.items);
    }
    let rows = whole.items.iter().map(|row| {
        vec![
            start(row, args.by),
            row.org.to_string(),
            dash(row.app.as_ref()),
            row.requests.to_string(),
            seconds(row.cpu_ms),
            row.memory_mb_s.to_string(),
            Bytes(row.bytes_in).to_string(),
            Bytes(row.bytes_out).to_string(),
            Bytes(row.bytes_stored).to_string(),
        ]
    });
    let head = ["FROM (UTC)", "ORG", "APP", "REQUESTS", "CPU", "MEMORY MB·S", "IN", "OUT", "STORED"];
    out.table(&head, rows.collect(), "nothing was used in that time")
}

fn start(row: &UsageRow, by: UsagePeriod) -> String {
    let form = match by {
        UsagePeriod::Hour => "%Y-%m-%d %H:00",
        UsagePeriod::Day => "%Y-%m-%d",
        UsagePeriod::Month => "%Y-%m",
    };
    row.start.to_zoned(TimeZone::UTC).strftime(form).to_string()
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1_000, ms % 1_000)
}

/// No field needs quotes: names are labels, the rest are numbers and times.
fn csv(out: Output, rows: &[UsageRow]) -> Result<()> {
    out.line("start,org,app,requests,cpu_ms,memory_mb_s,bytes_in,bytes_out,bytes_stored")?;
    for r in rows {
        out.line(format!(
            "{},{},{},{},{},{},{},{},{}",
            r.start,
            r.org,
            r.app.as_ref().map_or("", AppName::as_str),
            r.requests,
            r.cpu_ms,
            r.memory_mb_s,
            r.bytes_in,
            r.bytes_out,
            r.bytes_stored
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_moments_are_taken_and_nothing_else() {
        assert_eq!(parse_time("2026-11-01").unwrap().to_string(), "2026-11-01T00:00:00Z");
        assert_eq!(parse_time("2026-11-01T08:00:00+01:00").unwrap().to_string(), "2026-11-01T07:00:00Z");
        for bad in ["", "yesterday", "2026-13-01", "2026-11", "2026-11-01T08:00:00", "-1"] {
            assert!(parse_time(bad).is_err(), "{bad:?}");
        }
        assert_eq!(seconds(12_045), "12.045 s");
    }
}
