//! What the app keeps beside the register, in the key-value store: accounts, the session key, the
//! set-up claim and the counters of failed log-ins.

use marcato_guest::keyvalue::{self, Bucket};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::problem::Problem;

const SESSION_KEY: &str = "session-key";
const SETUP_CLAIM: &str = "setup-claim";
const ACCOUNT: &str = "account/";
/// Counters share this many places, so that made-up names do not fill the store.
const THROTTLE_PLACES: u64 = 4096;
/// Failures are forgotten after an hour without one.
const FORGET_MS: u64 = 60 * 60 * 1000;
const LONGEST_WAIT_MS: u64 = 15 * 60 * 1000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Admin,
    Doctor,
}

impl Role {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Admin => "Administrator",
            Self::Doctor => "Doctor",
        }
    }
}

/// Somebody who can log in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// The subject of the register whose rights decide what a doctor may do.
    pub(crate) subject: Option<String>,
    /// PHC string of argon2id.
    pub(crate) password_hash: String,
    /// Raised to void every session.
    pub(crate) epoch: u64,
    pub(crate) disabled: bool,
    pub(crate) created_ms: u64,
}

pub(crate) fn account(state: &Bucket, name: &str) -> Result<Option<Account>, Problem> {
    let Some(bytes) = state.get(&format!("{ACCOUNT}{name}"))? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| Problem::Service(format!("account {name}: {e}")))
}

pub(crate) fn save_account(state: &Bucket, account: &Account) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(account).map_err(|e| Problem::Service(e.to_string()))?;
    Ok(state.set(&format!("{ACCOUNT}{}", account.name), &bytes)?)
}

/// Every account, by name.
pub(crate) fn accounts(state: &Bucket) -> Result<Vec<Account>, Problem> {
    let mut names = keyvalue::keys_with_prefix(state, ACCOUNT)?;
    names.sort();
    let mut found = Vec::with_capacity(names.len());
    for key in names {
        found.extend(account(state, &key[ACCOUNT.len()..])?);
    }
    Ok(found)
}

/// The key that signs sessions; `None` until the first account exists.
pub(crate) fn session_key(state: &Bucket) -> Result<Option<Vec<u8>>, Problem> {
    Ok(state.get(SESSION_KEY)?)
}

/// Claims the one set-up. True for exactly one caller, ever, until `unclaim_setup`.
pub(crate) fn claim_setup(state: &Bucket) -> Result<bool, Problem> {
    Ok(keyvalue::increment(state, SETUP_CLAIM, 1)? == 1)
}

/// Gives the claim back when the set-up failed before it stored anything.
pub(crate) fn unclaim_setup(state: &Bucket) -> Result<(), Problem> {
    Ok(state.delete(SETUP_CLAIM)?)
}

pub(crate) fn is_set_up(state: &Bucket) -> Result<bool, Problem> {
    Ok(state.exists(SETUP_CLAIM)?)
}

/// Stores the first account and the session key: both or neither.
pub(crate) fn finish_setup(state: &Bucket, account: &Account, key: &[u8]) -> Result<(), Problem> {
    let bytes = serde_json::to_vec(account).map_err(|e| Problem::Service(e.to_string()))?;
    let entries = [(format!("{ACCOUNT}{}", account.name), bytes), (SESSION_KEY.to_owned(), key.to_vec())];
    Ok(keyvalue::set_many(state, &entries)?)
}

/// A counter of failed attempts: of an account's name or of a client's address.
pub(crate) struct Throttle {
    count_key: String,
    until_key: String,
    free: u64,
}

impl Throttle {
    /// After 5 failures of one account attempts have to wait.
    pub(crate) fn account(name: &str) -> Self {
        Self::new("a", name, 5)
    }

    /// After 20 failures from one client: many people may share an address.
    pub(crate) fn client(address: &str) -> Self {
        Self::new("c", address, 20)
    }

    fn new(kind: &str, name: &str, free: u64) -> Self {
        let hash = Sha256::digest(name.as_bytes());
        let number = u64::from(u16::from_be_bytes([hash[0], hash[1]])) % THROTTLE_PLACES;
        Self { count_key: format!("failed/{kind}/{number}"), until_key: format!("wait/{kind}/{number}"), free }
    }

    /// Refuses while a wait lasts; else counts this attempt as failed until `clear` says otherwise. Counted
    /// before the password is looked at, so attempts at the same time count as well.
    pub(crate) fn admit(&self, state: &Bucket, now_ms: u64) -> Result<(), Problem> {
        let until = state.get(&self.until_key)?.and_then(|b| String::from_utf8(b).ok()?.parse::<u64>().ok());
        if let Some(until) = until {
            if now_ms < until {
                return Err(Problem::Throttled((until - now_ms).div_ceil(1000)));
            }
            if now_ms - until > FORGET_MS {
                self.clear(state)?;
            }
        }
        let count = keyvalue::increment(state, &self.count_key, 1)?;
        let until = now_ms + wait_ms(count, self.free);
        Ok(state.set(&self.until_key, until.to_string().as_bytes())?)
    }

    pub(crate) fn clear(&self, state: &Bucket) -> Result<(), Problem> {
        Ok(keyvalue::delete_many(state, &[self.count_key.clone(), self.until_key.clone()])?)
    }
}

/// None for the free attempts, then 1 s, 2 s, 4 s … up to 15 minutes.
fn wait_ms(count: u64, free: u64) -> u64 {
    match count.checked_sub(free) {
        None | Some(0) => 0,
        Some(over) => {
            1000u64.checked_shl(u32::try_from(over - 1).unwrap_or(63).min(30)).unwrap_or(u64::MAX).min(LONGEST_WAIT_MS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::wait_ms;

    #[test]
    fn waits_double_and_end() {
        let waits: Vec<u64> = (1..=9).map(|n| wait_ms(n, 5)).collect();
        assert_eq!(waits, [0, 0, 0, 0, 0, 1000, 2000, 4000, 8000]);
        assert_eq!(wait_ms(100, 5), 15 * 60 * 1000);
        assert_eq!(wait_ms(u64::MAX, 5), 15 * 60 * 1000);
    }
}
