//! Patterns and addresses.

use super::*;

#[test]
fn patterns_match_whole_names_and_ports() {
    let egress = |hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        Egress::new(&hosts, false, Arc::new(LimitCounters::default()))
    };
    let some = egress(&["api.example.org", "*.example.com", "db.internal:8080", "[2001:db8::1]:80"]).expect("valid");
    for (host, port, tls, expected) in [
        ("api.example.org", 443, true, true),
        ("API.Example.Org.", 443, true, true),
        ("api.example.org", 80, false, true),
        ("api.example.org", 8443, true, false),
        ("xapi.example.org", 443, true, false),
        ("example.com", 443, true, false),
        ("a.example.com", 443, true, true),
        ("a.b.example.com", 443, true, true),
        ("badexample.com", 443, true, false),
        (".example.com", 443, true, false),
        ("db.internal", 8080, false, true),
        ("db.internal", 80, false, false),
        ("[2001:db8::1]", 80, false, true),
    ] {
        assert_eq!(some.allows(host, port, if tls { 443 } else { 80 }), expected, "{host}:{port}");
    }
    for bad in ["", "*", "*.", "https://a.b", "a b", "a/b", "a:", "a:99999", "user@host", "**.a", "a.*.b", "\u{0}"] {
        assert!(egress(&[bad]).is_err(), "{bad:?}");
    }
}

#[test]
fn internal_addresses_are_known() {
    for ip in [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "::7f00:1",
        "fec0::1",
    ] {
        assert!(is_internal(ip.parse().expect("an address")), "{ip}");
    }
    for ip in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
        assert!(!is_internal(ip.parse().expect("an address")), "{ip}");
    }
}
