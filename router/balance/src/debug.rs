//! Debug tokens: how whoever asks shows the edge that the app is theirs, so that errors explain themselves.
//!
//! Owns: the key of an app, the form of a token and its check. A token is `md_` and base64url of when it ends (seconds
//! since 1970, 8 bytes, big endian) and HMAC-SHA256 over the app's name and that time. Does not own who may have one
//! (control), nor what it shows (edge). No store is asked: the key stands in the app's entry of the route table.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hmac::{Hmac, Mac};
use marcato_api::AppName;
use sha2::Sha256;

/// What tokens begin with.
const PREFIX: &str = "md_";
const END_BYTES: usize = 8;
const MAC_BYTES: usize = 32;
/// Of a whole token.
const LENGTH: usize = PREFIX.len() + ((END_BYTES + MAC_BYTES) * 4).div_ceil(3);

/// What the tokens of one app are made and checked with.
#[derive(Clone, PartialEq, Eq)]
pub struct DebugKey([u8; 32]);

impl fmt::Debug for DebugKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DebugKey(***)")
    }
}

/// What a token is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugVerdict {
    /// It was made for this app and has not ended.
    Valid,
    /// It was made for this app and has ended.
    Expired,
    /// Anything else: nothing is told apart.
    Invalid,
}

impl DebugVerdict {
    /// As the response's header says it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Expired => "expired",
            Self::Invalid => "invalid",
        }
    }
}

impl DebugKey {
    /// The key of an app out of the cluster's secret. `born_ns` is when the app was made: another app of the same name
    /// has another key.
    #[must_use]
    pub fn derive(secret: &[u8; 32], app: &AppName, born_ns: i128) -> Self {
        let mut mac = keyed(secret);
        mac.update(b"marcato debug key\0");
        mac.update(app.as_str().as_bytes());
        mac.update(b"\0");
        mac.update(&born_ns.to_be_bytes());
        Self(mac.finalize().into_bytes().into())
    }

    /// A token that ends at this time.
    #[must_use]
    pub fn token(&self, app: &AppName, ends_s: u64) -> String {
        let mut bytes = [0; END_BYTES + MAC_BYTES];
        bytes[..END_BYTES].copy_from_slice(&ends_s.to_be_bytes());
        bytes[END_BYTES..].copy_from_slice(&self.mac(app, ends_s).finalize().into_bytes());
        format!("{PREFIX}{}", BASE64.encode(bytes))
    }

    /// What a text that came as a token is worth now. Takes the same time whatever its bytes are; those of another
    /// length are not looked at.
    #[must_use]
    pub fn check(&self, app: &AppName, token: &[u8], now_s: u64) -> DebugVerdict {
        let Some((ends_s, mac)) = parse(token) else { return DebugVerdict::Invalid };
        // In constant time. The end is believed only after that.
        match self.mac(app, ends_s).verify_slice(&mac) {
            Err(_) => DebugVerdict::Invalid,
            Ok(()) if now_s >= ends_s => DebugVerdict::Expired,
            Ok(()) => DebugVerdict::Valid,
        }
    }

    fn mac(&self, app: &AppName, ends_s: u64) -> Hmac<Sha256> {
        let mut mac = keyed(&self.0);
        mac.update(b"marcato debug token\0");
        mac.update(app.as_str().as_bytes());
        mac.update(b"\0");
        mac.update(&ends_s.to_be_bytes());
        mac
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of every length")
}

fn parse(token: &[u8]) -> Option<(u64, [u8; MAC_BYTES])> {
    let text = token.strip_prefix(PREFIX.as_bytes()).filter(|_| token.len() == LENGTH)?;
    let mut bytes = [0; END_BYTES + MAC_BYTES];
    // One spelling only: what hangs over at the end has to be zero.
    BASE64.decode_slice(text, &mut bytes).ok().filter(|length| *length == bytes.len())?;
    let (end, mac) = bytes.split_first_chunk::<END_BYTES>()?;
    Some((u64::from_be_bytes(*end), mac.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> AppName {
        AppName::new(text).unwrap()
    }

    #[test]
    fn a_token_is_good_for_its_app_until_it_ends() {
        let shop = name("shop");
        let key = DebugKey::derive(&[7; 32], &shop, 1);
        let token = key.token(&shop, 1_000);
        assert_eq!((token.len(), &token[..3]), (LENGTH, "md_"));
        assert_eq!(key.check(&shop, token.as_bytes(), 999), DebugVerdict::Valid);
        assert_eq!(key.check(&shop, token.as_bytes(), 1_000), DebugVerdict::Expired);
        assert_eq!(key.check(&shop, token.as_bytes(), u64::MAX), DebugVerdict::Expired);
        // Another app, one of the same name made at another time, another cluster.
        let other = name("other");
        assert_eq!(DebugKey::derive(&[7; 32], &other, 1).check(&other, token.as_bytes(), 0), DebugVerdict::Invalid);
        assert_eq!(key.check(&other, token.as_bytes(), 0), DebugVerdict::Invalid);
        for again in [DebugKey::derive(&[7; 32], &shop, 2), DebugKey::derive(&[8; 32], &shop, 1)] {
            // Not even that it would have ended is said.
            assert_eq!(again.check(&shop, token.as_bytes(), 2_000), DebugVerdict::Invalid);
        }
        assert!(!format!("{key:?}").contains('7'), "keys are not shown");
    }

    #[test]
    fn no_change_of_a_token_is_accepted() {
        let shop = name("shop");
        let key = DebugKey::derive(&[7; 32], &shop, 1);
        let token = key.token(&shop, 1_000);
        for at in 0..token.len() {
            for byte in [b'A', b'B', b'-', b'=', b' ', 0, 0xff] {
                let mut forged = token.clone().into_bytes();
                if forged[at] != byte {
                    forged[at] = byte;
                    assert_eq!(key.check(&shop, &forged, 0), DebugVerdict::Invalid, "{at} {byte}");
                }
            }
            assert_eq!(key.check(&shop, &token.as_bytes()[..at], 0), DebugVerdict::Invalid, "{at}");
        }
        // A later end under the old code, and what only looks alike.
        let later = format!("md_{}{}", &BASE64.encode(9_999_u64.to_be_bytes())[..10], &token[13..]);
        for forged in [later, format!("{token}="), format!(" {token}"), token.to_uppercase(), String::new()] {
            assert_eq!(key.check(&shop, forged.as_bytes(), 0), DebugVerdict::Invalid, "{forged}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_invalid(bytes in proptest::collection::vec(any::<u8>(), 0..120), tail in "[A-Za-z0-9_-]{54}") {
            let shop = name("shop");
            let key = DebugKey::derive(&[7; 32], &shop, 1);
            prop_assert_eq!(key.check(&shop, &bytes, 0), DebugVerdict::Invalid);
            prop_assert_eq!(key.check(&shop, format!("md_{tail}").as_bytes(), 0), DebugVerdict::Invalid);
        }
    }
}
