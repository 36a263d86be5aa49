//! Secure keys: 256 random bits, shown once, kept as a salted SHA-256.
//!
//! A key of full entropy cannot be guessed, so a fast hash is enough; the salt keeps equal keys of
//! different registers apart and makes the hash that people see say nothing about the key.

use marcato_api::{AccessError, AccessResponse, Change, IssuedKey};
use rand::TryRngCore;
use rand::rngs::OsRng;
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::{Outcome, history, now_ms, subjects, timestamp, validate};
use crate::services::worker::Failure;

const KEY_PREFIX: &str = "mk_";

pub(super) fn issue(c: &Connection, actor: &str, id: &str) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    let before = subjects::get(c, id)?;
    let secret: Zeroizing<[u8; 32]> = Zeroizing::new(random()?);
    let salt: [u8; 16] = random()?;
    let key = format!("{KEY_PREFIX}{}", base64url(&*secret));
    let hash = salted_hash(&salt, &key);
    let at = now_ms();
    c.prepare_cached(
        "UPDATE subjects SET key_hash = ?2, key_salt = ?3, key_issued_at = ?4, updated_at = ?4, version = version + 1
         WHERE id = ?1",
    )?
    .execute((id, hash.as_slice(), salt.as_slice(), at))?;
    let detail = if before.key_hash.is_some() { "rotated: the key before it is void" } else { "issued" };
    history::add(c, actor, Change::KeyIssued, Some(id), detail)?;
    Ok(AccessResponse::Issued(IssuedKey { key, hash: hex::encode(hash), issued_at: timestamp(at)? }))
}

pub(super) fn revoke(c: &Connection, actor: &str, id: &str) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    if subjects::get(c, id)?.key_hash.is_some() {
        c.prepare_cached(
            "UPDATE subjects SET key_hash = NULL, key_salt = NULL, key_issued_at = NULL, updated_at = ?2,
                version = version + 1
             WHERE id = ?1",
        )?
        .execute((id, now_ms()))?;
        history::add(c, actor, Change::KeyRevoked, Some(id), "revoked")?;
    }
    Ok(AccessResponse::Done)
}

pub(super) fn verify(c: &Connection, actor: &str, id: &str, key: &str) -> Outcome<AccessResponse> {
    validate::actor(actor)?;
    validate::id(id)?;
    let stored: (Option<Vec<u8>>, Option<Vec<u8>>) = c
        .prepare_cached("SELECT key_hash, key_salt FROM subjects WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?
        .ok_or_else(|| Failure::Answer(AccessError::NotFound(id.to_owned())))?;
    let right = match stored {
        (Some(hash), Some(salt)) => bool::from(salted_hash(&salt, key).ct_eq(&hash)),
        _ => false,
    };
    history::add(c, actor, Change::KeyVerified, Some(id), if right { "the key is right" } else { "the key is wrong" })?;
    Ok(AccessResponse::Verified(right))
}

/// SHA-256 over the salt and the key's text, prefix included.
fn salted_hash(salt: &[u8], key: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(key).finalize().into()
}

fn random<const N: usize>() -> Outcome<[u8; N]> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|e| Failure::Answer(AccessError::Unavailable(format!("no random numbers: {e}"))))?;
    Ok(bytes)
}

/// RFC 4648 section 5, without padding.
pub(super) fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |acc, b| acc << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for position in 0..=chunk.len() {
            let index = (group >> (18 - 6 * position)) & 63;
            text.push(char::from(ALPHABET[index as usize]));
        }
    }
    text
}
