//! The usage database: idempotent, durable, summed right, and in pages.

use marcato_api::{UsageDelta, UsagePeriod, UsageRow};

use super::*;

fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

fn used(app: &str, hour: i64, requests: u64) -> AppUsageHour {
    AppUsageHour {
        app: app.parse().unwrap(),
        org: if app.starts_with('c') { "clinic".parse().unwrap() } else { OrgName::default_org() },
        hour: Timestamp::from_second(hour * HOUR_S).unwrap(),
        total: UsageDelta {
            requests,
            cpu_us: requests * 1_500,
            memory_byte_ms: requests * 3_000_000_000,
            bytes_in: requests * 10,
            bytes_out: requests * 100,
        },
    }
}

fn cursor(ledger: u64, change: u64) -> UsageCursor {
    UsageCursor { ledger, change }
}

fn wish(by: UsagePeriod) -> Wish {
    Wish { from: 0, to: 1_000_000 * HOUR_S, org: None, app: None, by, after: None, limit: 100 }
}

fn told(rows: &[UsageRow]) -> Vec<(i64, String, u64)> {
    let app = |r: &UsageRow| r.app.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    rows.iter().map(|r| (r.start.as_second() / HOUR_S, app(r), r.requests)).collect()
}

#[tokio::test]
async fn a_page_that_is_gathered_twice_changes_nothing_and_ledgers_add_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usage.sqlite");
    let store = UsageStore::open(&path).unwrap();
    let now = Timestamp::now();
    assert_eq!(store.cursor(&host("h1")).await.unwrap(), UsageCursor::START);
    for _ in 0..2 {
        store.fold(&host("h1"), vec![used("a", 5, 2), used("clinic-app", 5, 1)], cursor(7, 2), now).await.unwrap();
    }
    store.fold(&host("h1"), vec![used("a", 5, 3)], cursor(7, 3), now).await.unwrap();
    store.fold(&host("h2"), vec![used("a", 5, 10)], cursor(8, 1), now).await.unwrap();
    // The host lost its disk within the hour: what it metered before stays counted.
    store.fold(&host("h1"), vec![used("a", 5, 100)], cursor(9, 1), now).await.unwrap();
    drop(store);
    let store = UsageStore::open(&path).unwrap();
    assert_eq!(store.cursor(&host("h1")).await.unwrap(), cursor(9, 1));
    let (rows, next) = store.report(wish(UsagePeriod::Hour)).await.unwrap();
    assert_eq!((told(&rows), next), (vec![(5, "clinic-app".into(), 1), (5, "a".into(), 113)], None));
    let a = &rows[1];
    assert_eq!((a.cpu_ms, a.memory_mb_s, a.bytes_in, a.bytes_out), (170, 339, 1_130, 11_300));
    assert_eq!(store.heard_at().await.unwrap().len(), 2);
}

#[tokio::test]
async fn periods_filters_and_pages() {
    let dir = tempfile::tempdir().unwrap();
    let store = UsageStore::open(&dir.path().join("usage.sqlite")).unwrap();
    let now = Timestamp::now();
    // 1970: day 0 has hours 0 to 23; February begins with hour 744.
    let items = vec![used("a", 0, 1), used("a", 23, 2), used("a", 24, 4), used("b", 743, 8), used("a", 744, 16)];
    store.fold(&host("h1"), items, cursor(1, 1), now).await.unwrap();
    let report = async |w: Wish| store.report(w).await.unwrap();
    let days = report(wish(UsagePeriod::Day)).await.0;
    let all: Vec<_> =
        [(0, "a", 3), (24, "a", 4), (720, "b", 8), (744, "a", 16)].map(|(h, a, n)| (h, a.to_owned(), n)).into();
    assert_eq!(told(&days), all);
    let months = report(wish(UsagePeriod::Month)).await.0;
    assert_eq!(told(&months), [(0, "a".into(), 7), (0, "b".into(), 8), (744, "a".into(), 16)]);
    let only = Wish { app: Some("b".parse().unwrap()), ..wish(UsagePeriod::Month) };
    assert_eq!(told(&report(only).await.0), [(0, "b".into(), 8)]);
    let none = Wish { org: Some("clinic".parse().unwrap()), ..wish(UsagePeriod::Month) };
    assert_eq!(told(&report(none).await.0), []);
    let within = Wish { from: 23 * HOUR_S, to: 743 * HOUR_S, ..wish(UsagePeriod::Hour) };
    assert_eq!(told(&report(within).await.0), [(23, "a".into(), 2), (24, "a".into(), 4)]);
    let (mut after, mut paged) = (None, Vec::new());
    loop {
        let (rows, next) = report(Wish { after, limit: 1, ..wish(UsagePeriod::Day) }).await;
        paged.extend(told(&rows));
        let Some(next) = next else { break };
        after = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(paged, all);
    for bad in ["", "1", "1.a", "x.a.b", "1.A.b", "1.a.b.c", "1.a.'; DROP TABLE used"] {
        assert!(bad.parse::<report::Place>().is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn what_is_stored_is_the_most_of_a_period_and_old_hours_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = UsageStore::open(&dir.path().join("usage.sqlite")).unwrap();
    let at = |hour: i64| Timestamp::from_second(hour * HOUR_S + 1).unwrap();
    let (one, two) = (ServiceId::generate(), ServiceId::generate());
    let size = |service: &ServiceId, app: Option<&str>, bytes| StoredBytes {
        service: service.clone(),
        org: OrgName::default_org(),
        app: app.map(|a| a.parse().unwrap()),
        bytes,
    };
    store.stored(vec![size(&one, Some("a"), 50), size(&two, Some("a"), 5)], at(1)).await.unwrap();
    store.stored(vec![size(&one, Some("a"), 40), size(&two, Some("a"), 6)], at(1)).await.unwrap();
    store.stored(vec![size(&one, Some("a"), 30), size(&two, None, 7)], at(2)).await.unwrap();
    store.fold(&host("h1"), vec![used("a", 2, 1)], cursor(1, 1), at(2)).await.unwrap();
    let rows = store.report(wish(UsagePeriod::Day)).await.unwrap().0;
    let told: Vec<_> = rows.iter().map(|r| (r.app.is_some(), r.requests, r.bytes_stored)).collect();
    assert_eq!(told, [(false, 0, 7), (true, 1, 56)]);
    store.trim(at(2)).await.unwrap();
    assert_eq!(store.report(wish(UsagePeriod::Day)).await.unwrap().0.len(), 2);
    store.trim(at(2 + 397 * 24)).await.unwrap();
    let hours = store.report(wish(UsagePeriod::Hour)).await.unwrap().0;
    assert!(hours.iter().all(|r| r.start.as_second() == 2 * HOUR_S) && hours.len() == 2, "{hours:?}");
    store.trim(at(3 + 397 * 24)).await.unwrap();
    assert_eq!(store.report(wish(UsagePeriod::Hour)).await.unwrap().0, []);
}

#[tokio::test]
async fn large_sums_fit_and_foreign_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = UsageStore::open(&dir.path().join("usage.sqlite")).unwrap();
    // A year of a host whose 64 GiB are always full.
    let full = |hour| {
        let mut item = used("a", hour, 1);
        item.total.memory_byte_ms = (64 << 30) * 3_600_000;
        item
    };
    store.fold(&host("h1"), (0..8_760).map(full).collect(), cursor(1, 1), Timestamp::now()).await.unwrap();
    let months = store.report(wish(UsagePeriod::Month)).await.unwrap().0;
    let sum: u64 = months.iter().map(|r| r.memory_mb_s).sum();
    // Each hour loses less than a kB·s, each month half an MB·s.
    assert!(sum.abs_diff((64_u64 << 30) * 3_600 * 8_760 / 1_000_000) <= 15, "{sum}");
    let foreign = dir.path().join("other.sqlite");
    Connection::open(&foreign).unwrap().pragma_update(None, "application_id", 7).unwrap();
    assert!(matches!(UsageStore::open(&foreign), Err(UsageError::Foreign(_))));
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, vec![b'x'; 4096]).unwrap();
    assert!(UsageStore::open(&garbage).is_err());
}
