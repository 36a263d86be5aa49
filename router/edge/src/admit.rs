//! What is let in: strict checks of a request's form, and the header as the host will get it.
//!
//! hyper has parsed by now and refused what no reading allows (bad tokens, bytes and lengths,
//! differing `Content-Length`, codings that do not end in chunked, any coding in HTTP/1.0). With
//! `Transfer-Encoding` beside `Content-Length`, in either order, it goes by the former, drops the latter
//! before anybody sees it, and closes after the response: the second of the two ways that RFC 9112, 6.1
//! allows, and the only one without parsing the head a second time. Here follow the rules that need the
//! whole request: one host, and no ambiguity that a next hop could read another way.

use std::net::Ipv6Addr;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};
use marcato_api::headers::INTERNAL_PREFIX;
use marcato_api::{ProblemKind, trailers};

use crate::errors::Refusal;
use crate::forwarded::Peer;
use crate::owner::DEBUG_NAME;

/// Fields that end at this hop (RFC 9110, 7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Checks a request and rewrites it for the host: origin-form target, one `Host`, no hop-by-hop or
/// internal field, the client described. Returns the host name in lower case, without port.
pub(crate) fn admit(parts: &mut Parts, peer: &Peer) -> Result<String, Refusal> {
    check_method(parts)?;
    let (authority, host) = authority(parts)?;
    check_framing(&parts.headers)?;
    check_upgrade(&parts.headers)?;
    if let Some(expect) = parts.headers.remove(EXPECT)
        && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
    {
        let detail = "The only expectation served is 100-continue.";
        return Err(Refusal::status(StatusCode::EXPECTATION_FAILED, "Expectation failed", detail));
    }
    join_cookies(&mut parts.headers);
    strip_hop_by_hop(&mut parts.headers);
    strip_internal(&mut parts.headers);
    trailers::clean_announcement(&mut parts.headers);
    peer.describe(&mut parts.headers, &authority);
    parts.headers.insert(HOST, authority);
    parts.version = Version::HTTP_11;
    Ok(host)
}

/// The host that is asked for, as written and as a name; the target becomes origin-form.
fn authority(parts: &mut Parts) -> Result<(HeaderValue, String), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::malformed("More than one Host header."));
    }
    if header.is_none() && parts.version == Version::HTTP_11 {
        return Err(Refusal::malformed("HTTP/1.1 needs a Host header."));
    }
    let in_header = match header {
        Some(value) => Some(host_of(value.as_bytes()).ok_or(Refusal::malformed("The Host header is not valid."))?),
        None => None,
    };
    let Some(in_target) = parts.uri.authority() else {
        return match (header, in_header) {
            (Some(value), Some(host)) => Ok((value.clone(), host)),
            _ => Err(Refusal::malformed("The request names no host.")),
        };
    };
    // Absolute-form (RFC 9112, 3.2.2) and HTTP/2: the target decides, and a Host must agree.
    let host = host_of(in_target.as_str().as_bytes()).ok_or(Refusal::malformed("The target's host is not valid."))?;
    if in_header.is_some_and(|h| h != host) {
        return Err(Refusal::malformed("Host and the request's target disagree."));
    }
    if parts.uri.scheme_str().is_some_and(|s| s != "http" && s != "https") {
        return Err(Refusal::malformed("The target's scheme is neither http nor https."));
    }
    let value =
        HeaderValue::from_str(in_target.as_str()).map_err(|_| Refusal::malformed("The target's host is not valid."))?;
    let path = parts.uri.path_and_query().cloned();
    parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    Ok((value, host))
}

/// The name in `host[:port]`: lower case, without a trailing dot. `None` when it is none.
fn host_of(authority: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(authority).ok()?;
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            inside.parse::<Ipv6Addr>().ok()?;
            (&text[..inside.len() + 2], port.strip_prefix(':').or(port.is_empty().then_some(""))?)
        }
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    if !port.is_empty() && (!port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err()) {
        return None;
    }
    if host.starts_with('[') {
        return Some(host.to_ascii_lowercase());
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let label = |l: &str| !l.is_empty() && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    (host.len() <= 253 && host.split('.').all(label)).then(|| host.to_ascii_lowercase())
}

fn check_method(parts: &Parts) -> Result<(), Refusal> {
    if parts.method == Method::CONNECT || parts.method == Method::TRACE {
        return Err(Refusal::new(ProblemKind::MethodNotAllowed, "CONNECT and TRACE are not served."));
    }
    let path = parts.uri.path();
    if path.starts_with('/') || (path == "*" && parts.method == Method::OPTIONS) {
        Ok(())
    } else {
        Err(Refusal::malformed("The request's target is not a path."))
    }
}

fn check_framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Refusal::malformed("The only transfer coding served is chunked."));
        }
        if headers.contains_key(CONTENT_LENGTH) {
            return Err(Refusal::malformed("Content-Length beside Transfer-Encoding."));
        }
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some() || !length.as_bytes().iter().all(u8::is_ascii_digit) || length.is_empty())
    {
        return Err(Refusal::malformed("The Content-Length is not one number."));
    }
    Ok(())
}

/// Refuses upgrades clearly. `h2c` is only an offer that a server may pass over (RFC 9113, 3.1).
fn check_upgrade(headers: &HeaderMap) -> Result<(), Refusal> {
    let offers =
        |v: &HeaderValue| v.as_bytes().split(|b| *b == b',').all(|o| o.trim_ascii().eq_ignore_ascii_case(b"h2c"));
    if headers.get_all(UPGRADE).iter().all(offers) {
        return Ok(());
    }
    let detail = "HTTP upgrade (such as WebSocket) is not served here.";
    Err(Refusal::status(StatusCode::NOT_IMPLEMENTED, "Not implemented", detail))
}

/// HTTP/2 clients send cookies one by one; HTTP/1.1 has a single field (RFC 9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for crumb in headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    // Valid values joined by a valid text: never an error.
    if let Ok(joined) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, joined);
    }
}

/// Removes hop-by-hop fields and those that `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    while let Some(value) = headers.get(CONNECTION).cloned() {
        // One line at a time; there may be several.
        for option in value.as_bytes().split(|b| *b == b',') {
            if let Ok(name) = HeaderName::from_bytes(option.trim_ascii())
                && name != CONNECTION
            {
                headers.remove(name);
            }
        }
        pop_first(headers, &CONNECTION);
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes the first of a field's lines.
fn pop_first(headers: &mut HeaderMap, name: &HeaderName) {
    let rest: Vec<HeaderValue> = headers.get_all(name).iter().skip(1).cloned().collect();
    headers.remove(name);
    for value in rest {
        headers.append(name.clone(), value);
    }
}

/// Removes every field that only platform parts may set, and what is between client and edge alone.
pub(crate) fn strip_internal(headers: &mut HeaderMap) {
    headers.remove(DEBUG_NAME);
    let internal = |headers: &HeaderMap| headers.keys().find(|n| n.as_str().starts_with(INTERNAL_PREFIX)).cloned();
    while let Some(name) = internal(headers) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_strict() {
        for (good, name) in [
            ("a.test", "a.test"),
            ("A.Test:8443", "a.test"),
            ("a.test.", "a.test"),
            ("a.test.:1", "a.test"),
            ("a.test:", "a.test"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
            ("my_app.test", "my_app.test"),
        ] {
            assert_eq!(host_of(good.as_bytes()).as_deref(), Some(name), "{good}");
        }
        let long = "a".repeat(254);
        for bad in [
            "",
            ".",
            ":80",
            "a..b",
            "a.test:x",
            "a.test:99999",
            "a b",
            "a@b",
            "a/b",
            "a\\b",
            "a\"b",
            "[::1",
            "[x]",
            "[::1]x",
            "::1",
            "a.test:80:80",
            "a.test:+80",
            "a%2e",
            "ä.test",
            "a,b",
            long.as_str(),
        ] {
            assert_eq!(host_of(bad.as_bytes()), None, "{bad:?}");
        }
        assert_eq!(host_of(b"\xff"), None);
    }

    #[test]
    fn fields_that_connection_names_go() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, x-one"),
            ("connection", "X-Two,, \u{7f}bad"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("x-marcato-instance", "evil"),
            ("x-marcato-instance", "evil2"),
            ("x-marcato-anything", "evil"),
            ("x-marcato-explain", "1"),
            ("marcato-debug", "md_one"),
            ("marcato-debug", "md_two"),
        ] {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                headers.append(HeaderName::from_static(name), value);
            }
        }
        headers.append(CONNECTION, HeaderValue::from_static("X-Two"));
        strip_hop_by_hop(&mut headers);
        strip_internal(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-three"]);
    }

    #[test]
    fn upgrades_are_told_apart() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, HeaderValue::from_static(value));
            check_upgrade(&headers)
        };
        assert!(of("h2c").is_ok() && of("H2C, h2c").is_ok() && check_upgrade(&HeaderMap::new()).is_ok());
        for refused in ["websocket", "h2c, websocket", ""] {
            assert_eq!(of(refused).unwrap_err().status, 501, "{refused:?}");
        }
    }
}
