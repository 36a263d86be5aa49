//! Where a guest may send HTTP requests: one entry of `allowed_outbound_hosts`, as the manifest and the API take it.

use std::net::Ipv6Addr;

/// One entry: `host`, `host:port`, `*.host`, `10.0.0.7:8080`, `[::1]:80`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundHost {
    /// In lower case; an IPv6 address stands in brackets.
    pub host: String,
    /// Whether names below `host` are meant, and not itself.
    pub subdomains: bool,
    /// `None`: the scheme's own port.
    pub port: Option<u16>,
}

impl OutboundHost {
    /// Parses an entry. Errors say what is expected, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?}: expected host, host:port, *.host or [IPv6 address]:port, without scheme or path");
        let (subdomains, rest) = match text.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (host, port) = match rest.find(']') {
            Some(end) if rest.starts_with('[') && !subdomains => {
                rest[1..end].parse::<Ipv6Addr>().map_err(|_| wrong())?;
                let (host, tail) = rest.split_at(end + 1);
                (host, if tail.is_empty() { None } else { Some(tail.strip_prefix(':').ok_or_else(wrong)?) })
            }
            _ => {
                let (host, port) = rest.split_once(':').map_or((rest, None), |(h, p)| (h, Some(p)));
                let label = |l: &str| {
                    (1..=63).contains(&l.len())
                        && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
                };
                let name = host.strip_suffix('.').unwrap_or(host);
                if name.len() > 253 || !name.split('.').all(label) {
                    return Err(wrong());
                }
                (name, port)
            }
        };
        let number = |p: &str| {
            let digits = (1..=5).contains(&p.len()) && p.bytes().all(|b| b.is_ascii_digit());
            p.parse::<u16>().ok().filter(|n| digits && *n > 0).ok_or_else(wrong)
        };
        let port = port.map(number).transpose()?;
        Ok(Self { host: host.to_ascii_lowercase(), subdomains, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_with_an_optional_port_pass() {
        for (text, host, subdomains, port) in [
            ("example.org", "example.org", false, None),
            ("API.example.org:8443", "api.example.org", false, Some(8443)),
            ("*.example.org", "example.org", true, None),
            ("*.example.org:80", "example.org", true, Some(80)),
            ("127.0.0.1:80", "127.0.0.1", false, Some(80)),
            ("[::1]", "[::1]", false, None),
            ("[2001:DB8::1]:65535", "[2001:db8::1]", false, Some(65535)),
            ("my_service.internal.", "my_service.internal", false, None),
        ] {
            let expected = OutboundHost { host: host.into(), subdomains, port };
            assert_eq!(OutboundHost::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn everything_else_is_an_error_that_names_it() {
        let long = "a.".repeat(127) + "ab";
        for bad in [
            "",
            "*",
            "*.",
            ".",
            "a..b",
            "https://example.org",
            "a b",
            "a/b",
            "a@b",
            "example.org:",
            "example.org:0",
            "example.org:99999",
            "example.org:+80",
            "a:1:2",
            ":80",
            "::1",
            "[::1",
            "::1]",
            "[::1]80",
            "[::1]:",
            "[]:80",
            "[fe80::1%eth0]",
            "*.[::1]",
            "[1.2.3.4]",
            "ü.org",
            "a*b",
            "a.*.b",
            &long,
        ] {
            let error = OutboundHost::parse(bad).unwrap_err();
            assert!(error.contains("expected host"), "{bad}: {error}");
        }
    }
}
