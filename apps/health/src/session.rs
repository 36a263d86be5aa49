//! Sessions: signed, expiring tokens. Pure functions of key and clock.
//!
//! A token is `payload.mac`, both base64url: the account, the account's epoch, when it was issued,
//! when it was last used and a nonce. It says who; what an account may do is looked up each time.
//! Logging out raises the account's epoch, which voids every token of it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// A session ends after this without a request.
pub(crate) const IDLE_MS: u64 = 30 * 60 * 1000;
/// A session ends after this in any case.
pub(crate) const ABSOLUTE_MS: u64 = 12 * 60 * 60 * 1000;
/// The cookie is written anew when it is older than this.
const REFRESH_MS: u64 = 60 * 1000;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) account: String,
    pub(crate) epoch: u64,
    pub(crate) issued_ms: u64,
    pub(crate) seen_ms: u64,
    pub(crate) nonce: String,
}

impl Session {
    /// The token of this session.
    pub(crate) fn seal(&self, key: &[u8]) -> String {
        let payload = URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default());
        let tag = mac(key, &["session", &payload]);
        format!("{payload}.{tag}")
    }

    /// The session of a token that is ours and has not expired.
    pub(crate) fn open(token: &str, key: &[u8], now_ms: u64) -> Option<Self> {
        let (payload, tag) = token.split_once('.')?;
        if token.len() > 1024 || !is_mac(key, &["session", payload], tag) {
            return None;
        }
        let session: Self = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
        let live =
            now_ms.saturating_sub(session.seen_ms) < IDLE_MS && now_ms.saturating_sub(session.issued_ms) < ABSOLUTE_MS;
        live.then_some(session)
    }

    /// The same session as seen now, when it is time to write it anew.
    pub(crate) fn refreshed(&self, now_ms: u64) -> Option<Self> {
        (now_ms.saturating_sub(self.seen_ms) >= REFRESH_MS).then(|| Self { seen_ms: now_ms, ..self.clone() })
    }

    /// The token that every form of this session carries.
    pub(crate) fn csrf(&self, key: &[u8]) -> String {
        mac(key, &["csrf", &self.nonce])
    }
}

/// The CSRF token of a browser that has not logged in: bound to the nonce in its cookie.
pub(crate) fn visitor_csrf(key: &[u8], nonce: &str) -> String {
    mac(key, &["visitor", nonce])
}

/// Compares in constant time.
pub(crate) fn same(a: &str, b: &str) -> bool {
    subtle::ConstantTimeEq::ct_eq(a.as_bytes(), b.as_bytes()).into()
}

fn keyed(key: &[u8], parts: &[&str]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part.as_bytes());
    }
    Some(mac)
}

/// HMAC-SHA-256 takes keys of any length, so there always is one.
fn mac(key: &[u8], parts: &[&str]) -> String {
    keyed(key, parts).map(|m| URL_SAFE_NO_PAD.encode(m.finalize().into_bytes())).unwrap_or_default()
}

fn is_mac(key: &[u8], parts: &[&str], tag: &str) -> bool {
    match (keyed(key, parts), URL_SAFE_NO_PAD.decode(tag)) {
        (Some(mac), Ok(tag)) => mac.verify_slice(&tag).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn session() -> Session {
        Session { account: "ada".to_owned(), epoch: 1, issued_ms: 1_000_000, seen_ms: 1_000_000, nonce: "n".to_owned() }
    }

    #[test]
    fn a_token_opens_until_it_expires() {
        let token = session().seal(KEY);
        assert_eq!(Session::open(&token, KEY, 1_000_000), Some(session()));
        assert!(Session::open(&token, KEY, 1_000_000 + IDLE_MS - 1).is_some());
        assert_eq!(Session::open(&token, KEY, 1_000_000 + IDLE_MS), None);
        let mut busy = session();
        busy.seen_ms += ABSOLUTE_MS - 1;
        assert!(Session::open(&busy.seal(KEY), KEY, 1_000_000 + ABSOLUTE_MS - 1).is_some());
        assert_eq!(Session::open(&busy.seal(KEY), KEY, 1_000_000 + ABSOLUTE_MS), None);
    }

    #[test]
    fn a_token_that_is_not_ours_does_not_open() {
        let token = session().seal(KEY);
        assert_eq!(Session::open(&token, b"another key", 1_000_000), None);
        let admin = Session { account: "admin".to_owned(), ..session() }.seal(b"guess");
        let (payload, _) = admin.split_once('.').expect("two parts");
        let (_, tag) = token.split_once('.').expect("two parts");
        assert_eq!(Session::open(&format!("{payload}.{tag}"), KEY, 1_000_000), None);
        for garbage in ["", ".", "a.b", "a", "....", "\u{1f600}.\u{1f600}", &"x".repeat(5000)] {
            assert_eq!(Session::open(garbage, KEY, 1_000_000), None);
        }
        for cut in 0..token.len() {
            assert_eq!(Session::open(&token[..cut], KEY, 1_000_000), None);
        }
    }

    #[test]
    fn csrf_tokens_belong_to_one_session() {
        let other = Session { nonce: "m".to_owned(), ..session() };
        assert_ne!(session().csrf(KEY), other.csrf(KEY));
        assert_ne!(session().csrf(KEY), visitor_csrf(KEY, "n"));
        assert!(same("ab", "ab") && !same("ab", "ac") && !same("ab", "abc"));
    }

    #[test]
    fn refreshes_once_a_minute() {
        assert_eq!(session().refreshed(1_000_000 + 59_999), None);
        assert_eq!(session().refreshed(1_060_000).map(|s| s.seen_ms), Some(1_060_000));
    }
}
