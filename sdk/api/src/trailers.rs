//! Trailers on their way between edge and ingress, and which fields may be some.
//!
//! HTTP/1.1 connections carry between the two, where trailers have to be named before the body begins (hyper sends no
//! others). Who sends them names them at the end only: HTTP/2 has no such rule, and neither has `wasi:http`. So between
//! edge and ingress there is one trailer, [`headers::TRAILERS`], which is always announced and holds the others. What comes
//! from a client or a guest passes [`allowed`] on either side.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::headers;

/// Most bytes of trailers, as [`size`] counts them.
pub const MAX_BYTES: usize = 4 << 10;

const PACKED: HeaderName = HeaderName::from_static(headers::TRAILERS);

/// Whether a field may come after the body. RFC 9110, 6.5.1 leaves out what frames or routes a message, modifies a request,
/// authenticates, controls the response or says how to read the body; and nobody may merge fields into a head that the
/// platform vouches for: its own, and who the client is.
pub fn is_allowed(name: &HeaderName) -> bool {
    let forbidden = [
        header::ACCEPT_RANGES,
        header::AGE,
        header::AUTHORIZATION,
        header::CACHE_CONTROL,
        header::CONNECTION,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_LOCATION,
        header::CONTENT_RANGE,
        header::CONTENT_TYPE,
        header::COOKIE,
        header::DATE,
        header::EXPECT,
        header::EXPIRES,
        header::FORWARDED,
        header::HOST,
        header::IF_MATCH,
        header::IF_MODIFIED_SINCE,
        header::IF_NONE_MATCH,
        header::IF_RANGE,
        header::IF_UNMODIFIED_SINCE,
        header::LOCATION,
        header::MAX_FORWARDS,
        header::PRAGMA,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::RANGE,
        header::RETRY_AFTER,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::VARY,
        header::WARNING,
        header::WWW_AUTHENTICATE,
    ];
    let text = name.as_str();
    let prefixes = [headers::INTERNAL_PREFIX, "x-forwarded-", "proxy-"];
    let others = ["http2-settings", "keep-alive", "x-real-ip", headers::REQUEST_ID, headers::DEBUG];
    !forbidden.contains(name) && !prefixes.iter().any(|p| text.starts_with(p)) && !others.contains(&text)
}

/// Those that may be trailers.
pub fn allowed(trailers: &HeaderMap) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
    trailers.iter().filter(|(name, _)| is_allowed(name))
}

/// Bytes of those that may be trailers: names, values, and two for each field.
pub fn size(trailers: &HeaderMap) -> usize {
    allowed(trailers).map(|(name, value)| name.as_str().len() + value.len() + 2).sum()
}

/// One field that holds those that may be trailers; nothing when there are none, or more than [`MAX_BYTES`].
pub fn pack(trailers: &HeaderMap) -> Option<HeaderMap> {
    let mut text = String::new();
    for (name, value) in allowed(trailers).take_while(|_| size(trailers) <= MAX_BYTES) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name.as_str());
        text.push('=');
        for byte in value.as_bytes() {
            // Without escapes as most values are; commas part the fields.
            match byte {
                b'%' | b',' | ..b'!' | b'\x7f'.. => text.push_str(&format!("%{byte:02x}")),
                plain => text.push(char::from(*plain)),
            }
        }
    }
    let value = HeaderValue::try_from(text).ok().filter(|v| !v.is_empty())?;
    Some(HeaderMap::from_iter([(PACKED, value)]))
}

/// What [`pack`] made one field of. Nothing when there is none, or it was not made by it.
pub fn unpack(packed: &HeaderMap) -> Option<HeaderMap> {
    let text = packed.get(PACKED)?.to_str().ok()?;
    let mut trailers = HeaderMap::new();
    for field in text.split(',') {
        let (name, value) = field.split_once('=')?;
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let value = HeaderValue::from_bytes(&unescaped(value)?).ok()?;
        if is_allowed(&name) {
            trailers.append(name, value);
        }
    }
    (!trailers.is_empty()).then_some(trailers)
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        bytes.extend(hex::decode(code).ok()?);
        bytes.extend(rest.as_bytes());
    }
    Some(bytes)
}

/// Announces the one field: for a message between edge and ingress whose body has no length.
pub fn announce(headers: &mut HeaderMap) {
    headers.append(header::TRAILER, HeaderValue::from_static(headers::TRAILERS));
}

/// Takes the one field out of what is announced, and all that may not be a trailer.
pub fn clean_announcement(headers: &mut HeaderMap) {
    if !headers.contains_key(header::TRAILER) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::TRAILER)
        .iter()
        .flat_map(|line| line.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(is_allowed)
        .collect();
    headers.remove(header::TRAILER);
    name_all(headers, named.iter());
}

/// Announces those of these fields that may be trailers, unless some are announced already.
pub fn name_unless_named(headers: &mut HeaderMap, trailers: &HeaderMap) {
    if !headers.contains_key(header::TRAILER) {
        name_all(headers, trailers.keys().filter(|name| is_allowed(name)));
    }
}

fn name_all<'a>(headers: &mut HeaderMap, names: impl Iterator<Item = &'a HeaderName>) {
    let text = names.map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    // Names parted by commas: always a valid value.
    if let Ok(value) = HeaderValue::try_from(text)
        && !value.is_empty()
    {
        headers.insert(header::TRAILER, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &[u8])]) -> HeaderMap {
        let field = |(n, v): &(&str, &[u8])| {
            (HeaderName::from_bytes(n.as_bytes()).expect("a name"), HeaderValue::from_bytes(v).expect("a value"))
        };
        fields.iter().map(field).collect()
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let trailers = map(&[
            ("grpc-status", b"0"),
            ("x-sum", b"a=b, 100%,  \t"),
            ("x-sum", b""),
            ("x-bytes", b"\x80\xff \xfe"),
            ("x-token!#$%&'*+-.^_`|~", b"=%%,"),
        ]);
        let packed = pack(&trailers).expect("some");
        assert_eq!(packed.len(), 1);
        assert_eq!(unpack(&packed), Some(trailers));
    }

    #[test]
    fn what_may_be_no_trailer_is_left_out_on_both_sides() {
        let mixed = map(&[
            ("content-length", b"5"),
            ("transfer-encoding", b"chunked"),
            ("host", b"a"),
            ("set-cookie", b"a=b"),
            ("authorization", b"Basic x"),
            ("x-marcato-error", b"gone"),
            ("x-marcato-trailers", b"x=y"),
            ("x-forwarded-for", b"127.0.0.1"),
            ("x-request-id", b"1"),
            ("marcato-debug", b"valid"),
            ("proxy-connection", b"close"),
            ("x-fine", b"1"),
        ]);
        let fine = map(&[("x-fine", b"1")]);
        assert_eq!(pack(&mixed).and_then(|p| unpack(&p)), Some(fine.clone()));
        assert_eq!((size(&mixed), size(&fine)), (9, 9));
        let forged = map(&[("x-marcato-trailers", b"host=evil,x-marcato-error=1,x-fine=1")]);
        assert_eq!(unpack(&forged), Some(fine));
        assert_eq!(unpack(&map(&[("x-marcato-trailers", b"host=evil")])), None);
        assert_eq!(pack(&map(&[("te", b"trailers")])), None);
    }

    #[test]
    fn what_was_not_packed_is_nothing() {
        for text in ["", "=", "x", "x=%", "x=%4", "x=%zz", "x=%0a", "x=%0d%0a", "x =1", ",", "x=1,", "x=%\u{e4}"] {
            let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) else { continue };
            assert_eq!(unpack(&HeaderMap::from_iter([(PACKED, value)])), None, "{text:?}");
        }
        assert_eq!(unpack(&map(&[("x-sum", b"1")])), None);
    }

    #[test]
    fn too_much_is_not_packed_and_the_most_fits_a_line() {
        let of = |value: usize| map(&[("x", &vec![b' '; value])]);
        assert_eq!(size(&of(MAX_BYTES - 3)), MAX_BYTES);
        let packed = pack(&of(MAX_BYTES - 3)).expect("it fits");
        // hyper reads 16 KiB of trailers.
        assert!(packed[PACKED].len() < 15 << 10, "{}", packed[PACKED].len());
        assert_eq!(pack(&of(MAX_BYTES - 2)), None);
    }

    #[test]
    fn an_announcement_names_what_may_come() {
        let mut headers = map(&[("trailer", b"X-Sum, host ,,x-marcato-trailers"), ("trailer", b"grpc-status, \xff")]);
        announce(&mut headers);
        clean_announcement(&mut headers);
        assert_eq!(headers, map(&[("trailer", b"x-sum, grpc-status")]));
        let mut none = map(&[("trailer", b"te")]);
        clean_announcement(&mut none);
        assert!(none.is_empty());
        name_unless_named(&mut none, &map(&[("x-a", b"1"), ("x-a", b"2"), ("host", b"1"), ("x-b", b"1")]));
        assert_eq!(none, map(&[("trailer", b"x-a, x-b")]));
        name_unless_named(&mut none, &map(&[("x-c", b"1")]));
        assert_eq!(none, map(&[("trailer", b"x-a, x-b")]));
    }
}
