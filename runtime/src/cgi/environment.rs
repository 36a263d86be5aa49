//! The request's meta-variables (RFC 3875, section 4.1), as the environment of a command.

use std::collections::{BTreeMap, BTreeSet};

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;

/// Fields that are the connection's, have a variable of their own, or would be taken for another's: `Proxy` would
/// become HTTP_PROXY, which HTTP clients obey (CVE-2016-5385 and others).
fn is_private(name: &HeaderName) -> bool {
    let list = [
        CONNECTION,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    // An underscore would make two names one: X_User and X-User.
    name == "proxy" || name == "keep-alive" || name.as_str().contains('_') || list.contains(name)
}

/// The environment of one request: the app's own, then what the client sent (never over the app's own), then what is
/// known of the request. `None`: its path cannot be told to a command.
pub(super) fn of(app: &[(String, String)], parts: &Parts, length: Option<u64>) -> Option<Vec<(String, String)>> {
    let mut env: BTreeMap<String, String> = app.iter().cloned().collect();
    for (name, value) in fields(&parts.headers) {
        env.entry(name).or_insert(value);
    }
    // What is not set here must not come from the app either: a program trusts these.
    for name in ["AUTH_TYPE", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTPS", "PATH_TRANSLATED", "REMOTE_USER"] {
        env.remove(name);
    }
    let text = |name: &HeaderName| parts.headers.get(name).map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
    let https = parts.headers.get("x-forwarded-proto").is_some_and(|p| p == "https");
    let authority = text(&HOST).or_else(|| parts.uri.authority().map(ToString::to_string)).unwrap_or_default();
    let (host, port) = split(&authority, if https { "443" } else { "80" });
    let mut set = |name: &str, value: String| drop(env.insert(name.to_owned(), value));
    set("GATEWAY_INTERFACE", "CGI/1.1".into());
    set("SERVER_SOFTWARE", concat!("marcato/", env!("CARGO_PKG_VERSION")).into());
    set("SERVER_PROTOCOL", format!("{:?}", parts.version));
    set("SERVER_NAME", host.into());
    set("SERVER_PORT", port.into());
    set("REQUEST_METHOD", parts.method.to_string());
    set("REQUEST_SCHEME", if https { "https" } else { "http" }.into());
    set("REQUEST_URI", parts.uri.path_and_query().map_or("/", |p| p.as_str()).into());
    set("SCRIPT_NAME", String::new());
    set("PATH_INFO", decoded(parts.uri.path())?);
    set("QUERY_STRING", parts.uri.query().unwrap_or_default().into());
    let client = remote(&parts.headers);
    set("REMOTE_ADDR", client.clone());
    set("REMOTE_HOST", client);
    if https {
        set("HTTPS", "on".into());
    }
    if let Some(length) = length {
        set("CONTENT_LENGTH", length.to_string());
    }
    if let Some(kind) = text(&CONTENT_TYPE) {
        set("CONTENT_TYPE", kind);
    }
    Some(env.into_iter().collect())
}

/// `HTTP_NAME` for each field (section 4.1.18); several of one name are joined.
fn fields(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> + '_ {
    // Named in Connection: meant for the next hop alone.
    let hop: BTreeSet<String> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    headers.keys().filter(move |name| !is_private(name) && !hop.contains(name.as_str())).map(|name| {
        let between = if name == COOKIE { "; " } else { ", " };
        let values: Vec<_> = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        (format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_")), values.join(between))
    })
}

/// Who speaks to the platform: the last address of `X-Forwarded-For`, which is the edge's word.
fn remote(headers: &HeaderMap) -> String {
    let last = headers.get_all("x-forwarded-for").iter().next_back().and_then(|v| v.to_str().ok());
    let address = last.and_then(|v| v.rsplit(',').next()).map(str::trim);
    address.filter(|a| a.parse::<std::net::IpAddr>().is_ok()).unwrap_or("0.0.0.0").to_owned()
}

/// Host and port of an authority.
fn split<'a>(authority: &'a str, default: &'a str) -> (&'a str, &'a str) {
    let end = authority.rfind(']').map_or(0, |at| at + 1);
    match authority[end..].rfind(':') {
        Some(at) => (&authority[..end + at], &authority[end + at + 1..]),
        None => (authority, default),
    }
}

/// A path without its escapes. `None`: it holds a character that no path should have, or is not UTF-8.
fn decoded(path: &str) -> Option<String> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || (rest.next()? as char).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(out).ok().filter(|text| !text.contains(char::is_control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method("POST").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("valid").into_parts().0
    }

    fn get<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
        env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    #[test]
    fn a_request_is_told_in_full() {
        let headers = [
            ("host", "shop.example.org:8443"),
            ("content-type", "text/plain"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-for", "10.0.0.9, 192.0.2.7"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "text/html"),
            ("accept", "*/*"),
        ];
        let app = [("COLOUR".to_owned(), "blue".to_owned()), ("REMOTE_USER".to_owned(), "root".to_owned())];
        let env = of(&app, &parts("/a%20b/%C3%BC?q=%20", &headers), Some(7)).expect("a path that can be told");
        for (name, value) in [
            ("COLOUR", "blue"),
            ("GATEWAY_INTERFACE", "CGI/1.1"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("SERVER_NAME", "shop.example.org"),
            ("SERVER_PORT", "8443"),
            ("REQUEST_METHOD", "POST"),
            ("REQUEST_URI", "/a%20b/%C3%BC?q=%20"),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", "/a b/ü"),
            ("QUERY_STRING", "q=%20"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("HTTPS", "on"),
            ("CONTENT_LENGTH", "7"),
            ("CONTENT_TYPE", "text/plain"),
            ("HTTP_COOKIE", "a=1; b=2"),
            ("HTTP_ACCEPT", "text/html, */*"),
            ("HTTP_HOST", "shop.example.org:8443"),
        ] {
            assert_eq!(get(&env, name), Some(value), "{name}");
        }
        for absent in ["HTTP_CONTENT_TYPE", "HTTP_CONTENT_LENGTH", "REMOTE_USER", "PATH_TRANSLATED"] {
            assert_eq!(get(&env, absent), None, "{absent}");
        }
    }

    #[test]
    fn a_client_cannot_set_what_is_not_its_own() {
        let headers = [
            ("host", "h"),
            ("proxy", "http://evil.example"),
            ("proxy-authorization", "x"),
            ("x_user", "root"),
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("x-secret", "theirs"),
            ("x-forwarded-for", "not an address"),
        ];
        let app = [("HTTP_X_SECRET".to_owned(), "ours".to_owned())];
        let env = of(&app, &parts("/", &headers), None).expect("a path that can be told");
        for absent in ["HTTP_PROXY", "HTTP_PROXY_AUTHORIZATION", "HTTP_X_USER", "HTTP_X_HOP", "HTTP_CONNECTION"] {
            assert_eq!(get(&env, absent), None, "{absent}");
        }
        assert_eq!(get(&env, "HTTP_X_SECRET"), Some("ours"));
        assert_eq!(get(&env, "REMOTE_ADDR"), Some("0.0.0.0"));
        assert_eq!((get(&env, "CONTENT_LENGTH"), get(&env, "HTTPS")), (None, None));
    }

    #[test]
    fn paths_and_authorities_are_taken_apart() {
        assert_eq!(decoded("/%41%2fb").as_deref(), Some("/A/b"));
        for bad in ["/%00", "/%0a", "/%ff", "/%4", "/%zz", "/%"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
        assert_eq!(split("[::1]:80", "1"), ("[::1]", "80"));
        assert_eq!(split("[::1]", "1"), ("[::1]", "1"));
        assert_eq!(split("a", "1"), ("a", "1"));
        assert_eq!(split("", "1"), ("", "1"));
    }
}
