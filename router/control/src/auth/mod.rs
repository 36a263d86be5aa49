//! Who calls: bearer tokens, join tokens, roles, and the brake on guessing.
//!
//! Owns: how a secret is made (256 random bits), stored (only as SHA-256, which is enough for a secret
//! that cannot be guessed) and compared (in constant time). Does not own what a role may do (`api`).

mod throttle;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use marcato_api::Token;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::TokenRecord;

pub(crate) use throttle::Throttle;

/// Prefix of bearer tokens.
pub(crate) const TOKEN_PREFIX: &str = "mt_";
/// Prefix of join tokens.
pub(crate) const JOIN_PREFIX: &str = "mj_";
/// 256 bits in base64url without padding.
const SECRET_CHARS: usize = 43;

/// A fresh secret and the hash to keep of it.
pub(crate) fn new_secret(prefix: &str) -> (String, String) {
    let bits = Zeroizing::new(rand::random::<[u8; 32]>());
    let secret = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(*bits));
    let hash = hash(&secret);
    (secret, hash)
}

/// SHA-256 in hexadecimal.
pub(crate) fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether a text has the form of a secret with this prefix; anything else is not even looked up.
pub(crate) fn well_formed(prefix: &str, secret: &str) -> bool {
    secret.strip_prefix(prefix).is_some_and(|s| {
        s.len() == SECRET_CHARS && s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    })
}

/// The token with this secret, unless it ended. Looks at every token, so that time tells nothing.
pub(crate) fn find<'a>(tokens: &'a [TokenRecord], secret: &str, now: Timestamp) -> Option<&'a Token> {
    let wanted = hash(secret);
    let mut found = None;
    for record in tokens {
        if bool::from(record.sha256.as_bytes().ct_eq(wanted.as_bytes())) {
            found = Some(&record.token);
        }
    }
    found.filter(|t| t.expires_at.is_none_or(|end| now < end))
}

#[cfg(test)]
mod tests {
    use marcato_api::Role;

    use super::*;

    fn record(name: &str, hash: String, expires_at: Option<Timestamp>) -> TokenRecord {
        let token =
            Token { name: name.into(), role: Role::Viewer, org: None, created_at: Timestamp::now(), expires_at };
        TokenRecord { token, sha256: hash }
    }

    #[test]
    fn a_token_is_found_by_its_secret_until_it_ends() {
        let (secret, hash) = new_secret(TOKEN_PREFIX);
        assert!(well_formed(TOKEN_PREFIX, &secret) && secret.len() == 46, "{secret}");
        assert_ne!(new_secret(TOKEN_PREFIX).0, secret);
        let now = Timestamp::now();
        let end = now + std::time::Duration::from_secs(1);
        let tokens = [record("other", "00".into(), None), record("mine", hash, Some(end))];
        assert_eq!(find(&tokens, &secret, now).unwrap().name, "mine");
        assert_eq!(find(&tokens, &secret, end), None);
        assert_eq!(find(&tokens, "mt_wrong", now), None);
    }

    #[test]
    fn garbage_is_not_a_secret() {
        let long = format!("mt_{}", "a".repeat(44));
        for garbage in
            ["", "mt_", "mj_", "mt_äääääääääääääääääääää", &long, "mt_ /+%0000000000000000000000000000000000000000"]
        {
            assert!(!well_formed(TOKEN_PREFIX, garbage), "{garbage:?}");
        }
    }
}
