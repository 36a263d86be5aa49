//! A request and a reply as plain values, so that everything behind them is a plain function.

use maud::Markup;

/// A request, its body read whole (the platform bounds it).
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// A cookie's value (RFC 6265).
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .filter(|(n, _)| n == "cookie")
            .flat_map(|(_, v)| v.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(n, _)| *n == name)
            .map(|(_, v)| v)
    }

    /// Whether the browser came over TLS, as the edge reports it.
    pub(crate) fn is_secure(&self) -> bool {
        self.header("x-forwarded-proto").is_some_and(|p| p.eq_ignore_ascii_case("https"))
    }

    /// The client's address: the last hop of X-Forwarded-For, which the edge itself wrote.
    pub(crate) fn client(&self) -> &str {
        self.header("x-forwarded-for").and_then(|v| v.rsplit(',').next()).map_or("unknown", str::trim)
    }

    pub(crate) fn is_api(&self) -> bool {
        self.path == "/api" || self.path.starts_with("/api/")
    }

    /// Whether the browser says that another site made it send this. RFC 6454 `Origin`, Fetch Metadata.
    pub(crate) fn is_cross_site(&self) -> bool {
        if let Some(site) = self.header("sec-fetch-site") {
            return !matches!(site, "same-origin" | "none");
        }
        match (self.header("origin"), self.header("host")) {
            (Some(origin), Some(host)) => origin.split_once("://").is_none_or(|(_, o)| !o.eq_ignore_ascii_case(host)),
            _ => false,
        }
    }
}

/// A reply.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

/// What every page may load: its style sheet from here, and nothing else.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

impl Reply {
    pub(crate) fn page(status: u16, markup: Markup) -> Self {
        Self::new(status, "text/html; charset=utf-8", markup.into_string().into_bytes())
    }

    pub(crate) fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, "application/json", value.to_string().into_bytes())
    }

    /// See other: the browser gets `location` next.
    pub(crate) fn redirect(location: &str) -> Self {
        Self::new(303, "text/plain; charset=utf-8", Vec::new()).with("location", location)
    }

    pub(crate) fn new(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        let headers = vec![
            ("content-type", content_type.to_owned()),
            ("content-security-policy", POLICY.to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
            ("cross-origin-opener-policy", "same-origin".to_owned()),
            ("cache-control", "no-store".to_owned()),
        ];
        Self { status, headers, body }
    }

    /// Sets a header; a cookie is added, anything else replaced.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if name != "set-cookie" {
            self.headers.retain(|(n, _)| *n != name);
        }
        self.headers.push((name, value.into()));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::Request;

    fn request(headers: &[(&str, &str)]) -> Request {
        Request {
            method: "GET".to_owned(),
            path: "/".to_owned(),
            query: String::new(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: Vec::new(),
        }
    }

    #[test]
    fn reads_cookies_and_the_last_hop() {
        let r = request(&[("cookie", "a=1; health=x.y"), ("cookie", "b=2"), ("x-forwarded-for", "6.6.6.6, 10.0.0.1")]);
        assert_eq!((r.cookie("health"), r.cookie("b"), r.cookie("c")), (Some("x.y"), Some("2"), None));
        assert_eq!(r.client(), "10.0.0.1");
    }

    #[test]
    fn tells_other_sites_apart() {
        assert!(!request(&[]).is_cross_site());
        assert!(!request(&[("origin", "https://h:1"), ("host", "h:1")]).is_cross_site());
        assert!(request(&[("origin", "https://evil"), ("host", "h:1")]).is_cross_site());
        assert!(request(&[("origin", "null"), ("host", "h:1")]).is_cross_site());
        assert!(request(&[("sec-fetch-site", "cross-site")]).is_cross_site());
        assert!(!request(&[("sec-fetch-site", "same-origin"), ("origin", "x")]).is_cross_site());
    }
}
