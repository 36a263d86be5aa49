//! Sealing: secrets are encrypted before they enter the store (XChaCha20-Poly1305).
//!
//! Owns: the key file and the form `v1.BASE64(nonce ‖ ciphertext)`. The place where a secret belongs is
//! authenticated with it, so that nobody who can write the database moves one app's secret to another.

use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::files::{self, FileError};

const VERSION: &str = "v1.";
const NONCE_BYTES: usize = 24;

/// Why a secret could not be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The key file cannot be read or made.
    #[error("the key that seals secrets cannot be had")]
    File(#[source] FileError),
    /// The key file has another length.
    #[error("the key file {0} is damaged: it must hold 32 bytes")]
    Damaged(String),
    /// Sealed with another key, moved, or damaged.
    #[error("{0} cannot be opened: sealed with another key, moved or damaged")]
    Open(String),
    /// Encryption failed.
    #[error("a secret could not be sealed")]
    Seal,
}

/// The key that seals secrets.
#[derive(Clone)]
pub struct SealKey(XChaCha20Poly1305);

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(***)")
    }
}

impl SealKey {
    /// Reads the key file, or makes it with mode 0600. Errors: a file of another length.
    pub fn ensure(path: &Path) -> Result<Self, SealError> {
        if let Some(bytes) = files::read(path).map_err(SealError::File)? {
            let bytes = Zeroizing::new(bytes);
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes);
            return cipher.map(Self).map_err(|_| SealError::Damaged(path.display().to_string()));
        }
        let key = Zeroizing::new(rand::random::<[u8; 32]>());
        files::write_secret(path, &*key).map_err(SealError::File)?;
        Ok(Self(XChaCha20Poly1305::new((&*key).into())))
    }

    /// Seals `clear` for `place` (a store key).
    pub fn seal(&self, place: &str, clear: &[u8]) -> Result<String, SealError> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: clear, aad: place.as_bytes() };
        let sealed = self.0.encrypt(XNonce::from_slice(&nonce), payload).map_err(|_| SealError::Seal)?;
        let mut bytes = nonce.to_vec();
        bytes.extend(sealed);
        Ok(format!("{VERSION}{}", BASE64.encode(bytes)))
    }

    /// Opens what was sealed for `place`.
    pub fn open(&self, place: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let refused = || SealError::Open(place.to_owned());
        let bytes = sealed.strip_prefix(VERSION).and_then(|s| BASE64.decode(s).ok()).ok_or_else(refused)?;
        let (nonce, ciphertext) = bytes.split_at_checked(NONCE_BYTES).ok_or_else(refused)?;
        let payload = Payload { msg: ciphertext, aad: place.as_bytes() };
        self.0.decrypt(XNonce::from_slice(nonce), payload).map(Zeroizing::new).map_err(|_| refused())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_only_in_its_place_and_with_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let key = SealKey::ensure(&dir.path().join("seal.key")).unwrap();
        let sealed = key.seal("revisions/a/1", b"hunter2").unwrap();
        assert!(!sealed.contains("hunter2"));
        assert_ne!(sealed, key.seal("revisions/a/1", b"hunter2").unwrap(), "a fresh nonce each time");
        let again = SealKey::ensure(&dir.path().join("seal.key")).unwrap();
        assert_eq!(&**again.open("revisions/a/1", &sealed).unwrap(), b"hunter2");
        assert!(again.open("revisions/b/1", &sealed).is_err(), "moved");
        let other = SealKey::ensure(&dir.path().join("other.key")).unwrap();
        assert!(other.open("revisions/a/1", &sealed).is_err(), "another key");
        for garbage in ["", "v1.", "v1.AAAA", "v2.AAAA", "v1.%%%", &sealed[..sealed.len() - 2]] {
            assert!(key.open("revisions/a/1", garbage).is_err(), "{garbage:?}");
        }
    }

    #[test]
    fn a_damaged_key_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        std::fs::write(&path, b"short").unwrap();
        assert!(matches!(SealKey::ensure(&path), Err(SealError::Damaged(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"short");
    }
}
