//! Who the client is, as the guest is told: `X-Forwarded-*` and `Forwarded` (RFC 7239).
//!
//! What a client says of itself is replaced; only proxies that the operator trusts are believed and
//! added to.

use std::net::IpAddr;
use std::sync::Arc;

use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};

use crate::config::IpRange;
use crate::conns::ConnState;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Headers that other proxies set and guests may believe; the edge sets none of them.
const OTHERS: [HeaderName; 5] = [
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-server"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-forwarded-ssl"),
];

/// The other end of a client connection; what is the same for all its requests is made once.
#[derive(Debug)]
pub(crate) struct Peer {
    address: HeaderValue,
    /// `for=…;proto=…;host=`, to be completed.
    forwarded: String,
    proto: HeaderValue,
    trusted: bool,
    pub(crate) conn: Arc<ConnState>,
}

impl Peer {
    pub(crate) fn new(ip: IpAddr, https: bool, trusted: &[IpRange], conn: Arc<ConnState>) -> Self {
        let ip = ip.to_canonical();
        let text = ip.to_string();
        let proto = if https { "https" } else { "http" };
        let node = if ip.is_ipv6() { format!("\"[{text}]\"") } else { text.clone() };
        Self {
            // An address is always a valid header value; an empty one would only say nothing.
            address: HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("")),
            forwarded: format!("for={node};proto={proto};host="),
            proto: HeaderValue::from_static(proto),
            trusted: trusted.iter().any(|range| range.contains(ip)),
            conn,
        }
    }

    /// Sets the headers; `authority` is the host that the client asked for, as it wrote it.
    pub(crate) fn describe(&self, headers: &mut HeaderMap, authority: &HeaderValue) {
        // Authorities are checked to have no quote and no backslash before they come here.
        let mut forwarded = Vec::with_capacity(self.forwarded.len() + authority.len() + 2);
        forwarded.extend_from_slice(self.forwarded.as_bytes());
        forwarded.push(b'"');
        forwarded.extend_from_slice(authority.as_bytes());
        forwarded.push(b'"');
        if self.trusted {
            let address = joined(headers, &FOR, self.address.as_bytes());
            let forwarded = joined(headers, &FORWARDED, &forwarded);
            set(headers, FOR, address);
            set(headers, FORWARDED, forwarded);
            headers.entry(PROTO).or_insert_with(|| self.proto.clone());
            headers.entry(HOST).or_insert_with(|| authority.clone());
        } else {
            OTHERS.iter().for_each(|name| drop(headers.remove(name)));
            headers.insert(FOR, self.address.clone());
            headers.insert(PROTO, self.proto.clone());
            headers.insert(HOST, authority.clone());
            set(headers, FORWARDED, forwarded);
        }
    }
}

/// All values of a list field and one more.
fn joined(headers: &HeaderMap, name: &HeaderName, last: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for value in headers.get_all(name) {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(last);
    all
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Vec<u8>) {
    match HeaderValue::from_maybe_shared(bytes::Bytes::from(value)) {
        Ok(value) => drop(headers.insert(name, value)),
        Err(_) => drop(headers.remove(name)),
    }
}
