//! Garbage and round trips for everything that is parsed from outside.

use crate::*;

#[test]
fn labels_refuse_what_dns_refuses() {
    let long = "x".repeat(64);
    for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a b", "a\0", long.as_str()] {
        assert!(AppName::new(bad).is_err(), "{bad:?}");
    }
    let longest = "x".repeat(63);
    for good in ["a", "0", "a-b", longest.as_str()] {
        assert_eq!(AppName::new(good).unwrap().as_str(), good);
    }
}

#[test]
fn a_digest_is_checked_and_computed() {
    let d = Digest::of(b"");
    assert_eq!(d.as_str(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for bad in ["", "sha256:", "sha256:00", "md5:e3b0", &d.as_str().to_uppercase(), &format!("{d}0")] {
        assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
    }
    assert!(serde_json::from_str::<Digest>("\"../../etc/passwd\"").is_err());
}

#[test]
fn instance_ids_stay_labels_however_long_the_app() {
    let app = AppName::new("a".repeat(63)).unwrap();
    let id = InstanceId::compose(&app, RevisionNumber(u64::MAX), u64::MAX);
    assert!(InstanceId::new(id.as_str()).is_ok(), "{id}");
}

#[test]
fn routes_are_strict() {
    for bad in ["", "http://a", "a:80", "A..b", "a/b?c", "a/../b", "a//b", "a/%2e", "*.a", "a/b#c", "-a.b", "a/b\\c"] {
        assert!(Route::parse(bad).is_err(), "{bad:?}");
    }
    assert_eq!(Route::parse("Shop.example.org/api").unwrap().to_string(), "shop.example.org/api");
    assert_eq!(Route::parse("hello.localhost").unwrap().path, "/");
}

#[test]
fn addresses_round_trip() {
    for good in ["tcp:127.0.0.1:80", "tcp:[::1]:80", "unix:/run/x.sock"] {
        assert_eq!(good.parse::<HostAddress>().unwrap().to_string(), good);
    }
    for bad in ["", "unix:x", "tcp:", "127.0.0.1", "tcp:example.org:80"] {
        assert!(bad.parse::<HostAddress>().is_err(), "{bad:?}");
    }
}

#[test]
fn limits_name_the_field() {
    let mut config = RevisionConfig::default();
    assert!(config.validate().is_ok());
    config.limits.cpu_ms = Millis(0);
    assert_eq!(config.validate().unwrap_err().field, "limits.cpu_ms");
    let unknown = serde_json::from_str::<RevisionConfig>(r#"{"concurency": 1}"#).unwrap_err();
    assert!(unknown.to_string().contains("concurency"), "{unknown}");
}

#[test]
fn every_problem_has_its_own_slug() {
    for kind in ProblemKind::ALL {
        assert_eq!(ProblemKind::from_slug(kind.slug()), Some(*kind));
        let json = serde_json::to_string(&Problem::new(*kind, "x")).unwrap();
        assert!(json.contains(&format!("urn:marcato:problem:{}", kind.slug())), "{json}");
        assert_eq!(serde_json::from_str::<Problem>(&json).unwrap().kind, *kind);
    }
}

#[test]
fn secrets_do_not_show_in_debug() {
    let now = jiff::Timestamp::UNIX_EPOCH;
    let key = IssuedKey { key: "mk_secret".into(), hash: "h".into(), issued_at: now };
    let join = JoinToken { token: "mj_secret".into(), expires_at: now };
    assert!(!format!("{key:?}{join:?}").contains("secret"));
}

#[test]
fn imports_find_their_grant() {
    assert_eq!(grant_for("wasi:cli/environment@0.2.6"), Some(Grant::Always));
    assert_eq!(grant_for("wasi:http/client@0.3.0"), Some(Grant::OutboundHttp));
    assert_eq!(grant_for("wasi:keyvalue/store@0.2.0-draft"), Some(Grant::Binding(ServiceKind::Keyvalue)));
    assert_eq!(grant_for("evil:root/shell"), None);
    assert_eq!(grant_for("wasi:http/typesetter"), None);
}

#[test]
fn sizes_read_well() {
    assert_eq!(Bytes::mib(128).to_string(), "128 MiB");
    assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
    assert_eq!(Bytes(999).to_string(), "999 B");
    assert_eq!(Millis(1500).to_string(), "1500 ms");
    assert_eq!(Millis::secs(2).to_string(), "2 s");
}

#[test]
fn a_log_cursor_survives_its_text_form_and_garbage_is_refused() {
    let cursor = LogCursor { boot: u64::MAX, sequence: 7 };
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for bad in ["", "-", "1", "1-", "-1", "1-x", "1-2-3", "99999999999999999999-1", "\u{0661}-1"] {
        assert!(bad.parse::<LogCursor>().is_err(), "{bad:?}");
    }
}

#[test]
fn a_policy_scope_survives_its_text_form_and_garbage_is_refused() {
    for text in ["cluster", "org:clinic", "space:clinic:test", "app:clinic:shop"] {
        assert_eq!(text.parse::<PolicyScope>().unwrap().to_string(), text);
    }
    let bad = ["", "org", "org:", "org:A", "app:shop", "app:a:b:c", "cluster:x", "space:a", "space:a:b/c", "vm", ":::"];
    for bad in bad {
        assert!(bad.parse::<PolicyScope>().is_err(), "{bad:?}");
    }
}

#[test]
fn the_nearest_scope_wins_setting_by_setting() {
    let org = PolicyScope::Org(OrgName::new("clinic").unwrap());
    let near = Policy { isolation: Some(IsolationClass::Process), ..Policy::default() };
    let far = Policy {
        isolation: Some(IsolationClass::Shared),
        group: Some("wards".into()),
        cpu_weight: Some(20),
        log_bytes_per_s: Some(Bytes(7)),
        ..Policy::default()
    };
    let whole = Effective::of([(org.clone(), &near), (PolicyScope::Cluster, &far)]);
    assert_eq!(whole.isolation(), Isolation { class: IsolationClass::Process, group: String::new() });
    assert_eq!((whole.budget().cpu_weight, whole.budget().log_bytes_per_s), (20, Some(Bytes(7))));
    assert_eq!((whole.source("isolation"), whole.source("cpu_weight")), (Some(&org), Some(&PolicyScope::Cluster)));
    assert_eq!(whole.source("max_apps"), None);
    let app = AppName::new("shop").unwrap();
    let shared = Effective::of([(PolicyScope::Cluster, &far)]).isolation();
    assert_eq!((whole.isolation().worker(&app), shared.worker(&app)), ("app-shop".into(), "shared-wards".into()));
    assert_eq!(Effective::default().isolation().worker(&app), "shared");
    assert_eq!(Effective::default().budget(), AppBudget::default());
}

#[test]
fn a_policy_is_checked_and_checks() {
    let cluster = PolicyScope::Cluster;
    let space: PolicyScope = "space:a:b".parse().unwrap();
    let wrong = |policy: Policy, scope: &PolicyScope| policy.validate(scope).unwrap_err().field();
    assert_eq!(wrong(Policy { cpu_weight: Some(0), ..Policy::default() }, &cluster), "cpu_weight");
    assert_eq!(wrong(Policy { group: Some("../x".into()), ..Policy::default() }, &cluster), "group");
    assert_eq!(wrong(Policy { max_apps: Some(1), ..Policy::default() }, &space), "max_apps");
    let unknown = serde_json::from_str::<Policy>(r#"{"max_memory": 1}"#).unwrap_err();
    assert!(unknown.to_string().contains("max_memory"), "{unknown}");
    let tight =
        Policy { max_memory_bytes: Some(Bytes::mib(64)), max_component_bytes: Some(Bytes(9)), ..Policy::default() };
    tight.validate(&space).unwrap();
    let over = tight.exceeded(&RevisionConfig::default(), Bytes(10));
    let told: Vec<_> = over.iter().map(|e| (e.field, e.value, e.quota)).collect();
    assert_eq!(told, [("config.limits.memory_bytes", 128 << 20, 64 << 20), ("digest", 10, 9)]);
    assert_eq!(Policy::default().exceeded(&RevisionConfig::default(), Bytes(u64::MAX)), []);
    // Every setting can be removed by the name that the API shows, and put back.
    for field in Policy::FIELDS {
        assert!(Policy::default().unset(field), "{field}");
    }
    assert!(!Policy::default().unset("nothing"));
    let mut both = Policy { cpu_weight: Some(3), ..tight.clone() };
    both.overlay(&Policy { cpu_weight: Some(4), ..Policy::default() });
    both.unset("max_memory_bytes");
    assert_eq!((both.cpu_weight, both.max_memory_bytes, both.max_component_bytes), (Some(4), None, Some(Bytes(9))));
}

#[test]
fn a_usage_cursor_survives_its_text_form_and_garbage_is_refused() {
    let cursor = UsageCursor { ledger: 0xab, change: 7 };
    assert_eq!(cursor.to_string(), "00000000000000ab-7");
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for bad in ["", "-", "ab-7", "00000000000000ab", "00000000000000ab-", "00000000000000ab--1", "+0000000000000ab-1"] {
        assert!(bad.parse::<UsageCursor>().is_err(), "{bad:?}");
    }
}

#[test]
fn usage_grows_and_never_goes_back() {
    let mut sum = UsageDelta { requests: u64::MAX, cpu_us: 5, ..UsageDelta::default() };
    sum.add(&UsageDelta { requests: 1, cpu_us: 5, ..UsageDelta::default() });
    assert_eq!((sum.requests, sum.cpu_us), (u64::MAX, 10));
    let anew = UsageDelta { cpu_us: 3, ..UsageDelta::default() };
    assert!(anew.since(&sum).is_zero(), "counters that began anew give nothing, not a debt");
    assert_eq!(sum.since(&anew).cpu_us, 7);
}
