//! The table against a naive model, and the promises of `pick` and the breaker.

use std::collections::HashMap;
use std::sync::Arc;

use marcato_api::{AppName, HostAddress, HostId, InstanceId, Limits, RevisionNumber, Route};
use proptest::prelude::*;

use crate::*;

const POLICY: BreakerPolicy = BreakerPolicy { failures: 3, backoff_ms: 100, backoff_max_ms: 350 };

fn endpoint(n: usize, concurrency: u32) -> EndpointSpec {
    EndpointSpec {
        instance: InstanceId::new(format!("i{n}")).unwrap(),
        host: HostId::new("h1").unwrap(),
        address: HostAddress::Unix("/run/x.sock".into()),
        revision: RevisionNumber(1),
        concurrency,
    }
}

fn app(name: &str, routes: &[&str], endpoints: Vec<EndpointSpec>) -> AppSpec {
    AppSpec {
        app: AppName::new(name).unwrap(),
        stopped: false,
        limits: Limits::default(),
        routes: routes.iter().map(|r| Route::parse(r).unwrap()).collect(),
        endpoints,
        debug: DebugKey::derive(&[0; 32], &AppName::new(name).unwrap(), 0),
    }
}

fn table(apps: Vec<AppSpec>) -> RouteTable {
    RouteTable::build(1, apps, &RouteTable::empty())
}

fn entry(concurrencies: &[u32]) -> Arc<AppEntry> {
    let endpoints = concurrencies.iter().enumerate().map(|(n, c)| endpoint(n, *c)).collect();
    let table = table(vec![app("a", &["a.test"], endpoints)]);
    let entry = table.apps().next().unwrap();
    Arc::clone(entry)
}

/// xorshift64*, so that a failure can be replayed from its seed.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[test]
fn the_longest_prefix_wins_on_whole_segments() {
    let t = table(vec![
        app("root", &["x.test"], vec![]),
        app("api", &["x.test/api", "y.test/only"], vec![]),
        app("deep", &["x.test/api/v2/"], vec![]),
    ]);
    let found = |host: &str, path: &str| t.find(host, path).map(|e| e.app.as_str().to_owned());
    for (path, expected) in [
        ("/", "root"),
        ("/apiary", "root"),
        ("/api", "api"),
        ("/api/", "api"),
        ("/api/v20", "api"),
        ("/api/v2", "deep"),
        ("/api/v2/x", "deep"),
        ("*", "root"),
        ("", "root"),
    ] {
        assert_eq!(found("x.test", path).as_deref(), Some(expected), "{path}");
    }
    assert_eq!(found("y.test", "/"), None);
    assert_eq!(found("y.test", "/only/x").as_deref(), Some("api"));
    assert_eq!(found("z.test", "/"), None);
    assert!(t.has_host("y.test") && !t.has_host("z.test"));
}

#[test]
fn the_first_claim_of_a_route_holds() {
    let t = table(vec![app("one", &["x.test/a"], vec![]), app("two", &["x.test/a/"], vec![])]);
    assert_eq!(t.find("x.test", "/a").unwrap().app.as_str(), "one");
}

#[test]
fn a_new_table_keeps_what_did_not_change() {
    let one = table(vec![app("a", &["a.test"], vec![endpoint(0, 4), endpoint(1, 4)])]);
    let busy = one.apps().next().unwrap().endpoints[0].begin();
    let moved = EndpointSpec { address: HostAddress::Unix("/run/y.sock".into()), ..endpoint(1, 4) };
    let two = RouteTable::build(2, vec![app("a", &["a.test"], vec![endpoint(0, 4), moved])], &one);
    let endpoints = &two.apps().next().unwrap().endpoints;
    assert_eq!(endpoints[0].stats.in_flight(), 1);
    assert!(Arc::ptr_eq(&endpoints[0], busy.endpoint()));
    assert!(!Arc::ptr_eq(&endpoints[1], &one.apps().next().unwrap().endpoints[1]));
    assert_eq!(two.version(), 2);
    drop(busy);
    assert_eq!(endpoints[0].stats.in_flight(), 0);
}

#[test]
fn the_cell_hands_over_the_last_table() {
    let cell = TableCell::new();
    assert_eq!(cell.load().version(), 0);
    let held = cell.load_full();
    cell.store(table(vec![app("a", &["a.test"], vec![])]));
    assert_eq!((held.version(), cell.load().version()), (0, 1));
}

#[test]
fn load_follows_concurrency() {
    let e = entry(&[1, 3]);
    let mut random = random(7);
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(pick(&e, 0, &POLICY, &mut random, &[]).unwrap());
    }
    assert_eq!((e.endpoints[0].stats.in_flight(), e.endpoints[1].stats.in_flight()), (10, 30));
}

#[test]
fn an_endpoint_is_ejected_and_probed_back() {
    let e = entry(&[4, 4]);
    let mut random = random(3);
    let bad = Arc::clone(&e.endpoints[0]);
    for n in 0..3 {
        assert_eq!(bad.begin().failed(1_000, &POLICY), n == 2, "the third failure ejects");
    }
    for _ in 0..50 {
        assert_eq!(pick(&e, 1_099, &POLICY, &mut random, &[]).unwrap().instance.as_str(), "i1");
    }
    // One probe when the back-off has passed, and only one.
    let probe = pick(&e, 1_100, &POLICY, &mut random, &[]).unwrap();
    assert!(probe.is_probe() && probe.instance == bad.instance);
    for _ in 0..50 {
        assert!(!pick(&e, 1_100, &POLICY, &mut random, &[]).unwrap().is_probe());
    }
    // It fails: twice the back-off, then the cap.
    assert!(!probe.failed(1_100, &POLICY));
    assert!(!pick(&e, 1_299, &POLICY, &mut random, &[]).unwrap().is_probe());
    let probe = pick(&e, 1_300, &POLICY, &mut random, &[]).unwrap();
    assert!(probe.is_probe());
    assert!(!probe.failed(1_300, &POLICY));
    assert!(!pick(&e, 1_649, &POLICY, &mut random, &[]).unwrap().is_probe());
    let probe = pick(&e, 1_650, &POLICY, &mut random, &[]).unwrap();
    assert!(probe.is_probe());
    probe.succeeded();
    assert!(!bad.stats.is_ejected());
    // A success resets the count: two failures do not eject again.
    assert!(!bad.begin().failed(2_000, &POLICY));
    assert!(!bad.begin().failed(2_000, &POLICY));
    bad.begin().succeeded();
    assert!(!bad.begin().failed(2_000, &POLICY));
    assert!(!bad.stats.is_ejected());
}

#[test]
fn late_failures_do_not_push_the_return_away() {
    let e = entry(&[4, 4]);
    let bad = &e.endpoints[0];
    let held: Vec<_> = (0..20).map(|_| bad.begin()).collect();
    assert_eq!(held.iter().filter(|g| g.failed(1_000, &POLICY)).count(), 1);
    assert!(pick(&e, 1_100, &POLICY, &mut random(1), &[]).unwrap().is_probe());
}

#[test]
fn when_all_are_ejected_any_is_picked() {
    for count in 1..4 {
        let e = entry(&vec![1; count]);
        for bad in &e.endpoints {
            for _ in 0..3 {
                bad.begin().failed(10, &POLICY);
            }
            assert!(bad.stats.is_ejected());
        }
        assert!(pick(&e, 11, &POLICY, &mut random(5), &[]).is_some());
        assert!(pick(&e, 11, &POLICY, &mut random(5), &e.endpoints).is_none());
    }
    assert!(pick(&entry(&[]), 0, &POLICY, &mut random(5), &[]).is_none());
}

fn segments() -> impl Strategy<Value = String> {
    proptest::collection::vec("[ab]{1,2}", 0..4).prop_map(|s| format!("/{}", s.join("/")))
}

proptest! {
    #[test]
    fn find_agrees_with_a_naive_search(routes in proptest::collection::vec(segments(), 0..8), path in segments()) {
        let apps = routes.iter().enumerate().map(|(n, r)| app(&format!("a{n}"), &[&format!("x.test{r}")], vec![])).collect();
        let parts = |p: &str| p.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let expected = routes
            .iter()
            .enumerate()
            .filter(|(_, r)| parts(&path).starts_with(&parts(r)))
            .max_by(|(i, a), (j, b)| parts(a).len().cmp(&parts(b).len()).then(j.cmp(i)))
            .map(|(n, _)| format!("a{n}"));
        prop_assert_eq!(table(apps).find("x.test", &path).map(|e| e.app.as_str().to_owned()), expected);
    }

    #[test]
    fn pick_keeps_its_promises(
        concurrencies in proptest::collection::vec(1_u32..100, 0..12),
        ejected in proptest::collection::vec(any::<bool>(), 12),
        excluded in proptest::collection::vec(any::<bool>(), 12),
        now in 0_u64..400,
        seed: u64,
    ) {
        let e = entry(&concurrencies);
        for (endpoint, _) in e.endpoints.iter().zip(&ejected).filter(|(_, ejected)| **ejected) {
            for _ in 0..3 { endpoint.begin().failed(100, &POLICY); }
        }
        let exclude: Vec<_> = e.endpoints.iter().zip(&excluded).filter(|(_, x)| **x).map(|(e, _)| Arc::clone(e)).collect();
        let open: Vec<_> = e.endpoints.iter().filter(|x| !exclude.iter().any(|y| Arc::ptr_eq(x, y))).collect();
        let healthy = open.iter().any(|x| !x.stats.is_ejected());
        match pick(&e, now, &POLICY, &mut random(seed), &exclude) {
            None => prop_assert!(open.is_empty()),
            Some(got) => {
                prop_assert!(open.iter().any(|x| Arc::ptr_eq(x, got.endpoint())));
                prop_assert!(!healthy || got.is_probe() || !got.stats.is_ejected());
                prop_assert!(!got.is_probe() || now >= 200);
                prop_assert_eq!(got.stats.in_flight(), 1);
            }
        }
        prop_assert!(e.endpoints.iter().all(|x| x.stats.in_flight() == 0));
    }

    #[test]
    fn equal_endpoints_share_evenly(count in 2_usize..10, seed: u64) {
        let e = entry(&vec![8; count]);
        let mut random = random(seed);
        let held: Vec<_> = (0..count * 50).map(|_| pick(&e, 0, &POLICY, &mut random, &[]).unwrap()).collect();
        let mut counts = HashMap::new();
        for h in &held { *counts.entry(h.instance.as_str().to_owned()).or_insert(0_i64) += 1; }
        prop_assert_eq!(counts.len(), count);
        // Two choices keep the largest within a few of the mean (log log n + O(1)).
        prop_assert!(counts.values().all(|c| (c - 50).abs() <= 8), "{:?}", counts);
    }
}
