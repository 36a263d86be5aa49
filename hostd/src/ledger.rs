//! The ledger: the one `HostConfig` that this host should run, durable before it is acknowledged.
//!
//! Sealed with XChaCha20-Poly1305, for a config holds the env of apps in clear. The key lies beside the
//! identity, so the seal guards copies of the ledger (backups, stray disks), not a stolen data directory.
//! A ledger that cannot be read is set aside, never deleted, and the host starts empty: the control plane
//! tells it everything again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use marcato_api::{Generation, HostConfig};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::durable;

const FILE: &str = "ledger.json";
const FORMAT: u32 = 1;
const SEALED_FOR: &[u8] = b"marcato host ledger, format 1";
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;

/// The key that seals the ledger.
pub(crate) struct SealKey(Zeroizing<[u8; KEY_BYTES]>);

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The seal key cannot be read or made.
    #[error("the seal key {} cannot be used", path.display())]
    Key {
        /// Where it lies.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("the ledger cannot be read")]
    Read(#[source] io::Error),
    /// The file cannot be written: nothing was acknowledged.
    #[error("the ledger cannot be written")]
    Write(#[source] io::Error),
    /// A damaged file cannot be moved out of the way.
    #[error("the damaged ledger cannot be set aside")]
    SetAside(#[source] io::Error),
    /// The config cannot be written as JSON or sealed.
    #[error("the config cannot be sealed")]
    Seal,
    /// The config is older than the one held.
    #[error("generation {offered} is older than generation {held}, which this host holds")]
    Stale {
        /// What was offered.
        offered: Generation,
        /// What is held.
        held: Generation,
    },
    /// The config has the generation of the one held, and says something else.
    #[error("generation {0} is held already, with other contents")]
    Differs(Generation),
}

/// Why a ledger file is not a ledger.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("it is not the JSON of a ledger: {0}")]
    Envelope(#[from] serde_json::Error),
    #[error("format {0} is not known")]
    Format(u32),
    #[error("nonce or contents are not hexadecimal")]
    Hex,
    #[error("it does not open with this host's seal key")]
    Seal,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    format: u32,
    nonce: String,
    sealed: String,
}

/// The config held, on disk and in memory. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Ledger(Arc<Inner>);

struct Inner {
    path: PathBuf,
    key: SealKey,
    /// Held over a whole write, so that two writers are one after the other; only blocking threads wait here.
    writer: Mutex<()>,
    held: watch::Sender<Arc<HostConfig>>,
}

impl SealKey {
    /// The key in this file; made when it is not there.
    pub(crate) fn ensure(path: &Path) -> Result<Self, LedgerError> {
        let fail = |source| LedgerError::Key { path: path.to_owned(), source };
        match fs::read(path) {
            Ok(bytes) => {
                let bytes = Zeroizing::new(bytes);
                let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice())
                    .map_err(|_| fail(io::Error::new(io::ErrorKind::InvalidData, "expected 32 bytes")))?;
                Ok(Self(Zeroizing::new(key)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let mut key = Zeroizing::new([0; KEY_BYTES]);
                rand::rngs::OsRng.try_fill_bytes(key.as_mut()).map_err(|e| fail(io::Error::other(e)))?;
                durable::write_private(path, key.as_ref()).map_err(fail)?;
                Ok(Self(key))
            }
            Err(e) => Err(fail(e)),
        }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.as_ref().into())
    }
}

fn empty() -> HostConfig {
    HostConfig { generation: Generation(0), instances: Vec::new(), services: Vec::new(), peers: Vec::new() }
}

impl Ledger {
    /// Opens the ledger in `dir`, or starts an empty one.
    pub(crate) fn open(dir: &Path, key: SealKey) -> Result<Self, LedgerError> {
        let path = dir.join(FILE);
        let config = match fs::read(&path) {
            Ok(bytes) => match unseal(&key, &bytes) {
                Ok(config) => config,
                Err(damage) => {
                    let aside = dir.join(format!("{FILE}.damaged-{}", ulid::Ulid::new()));
                    fs::rename(&path, &aside).and_then(|()| durable::sync_dir(dir)).map_err(LedgerError::SetAside)?;
                    tracing::error!(
                        %damage, kept_as = %aside.display(),
                        "the ledger is damaged and was set aside; this host starts empty until it is told again"
                    );
                    empty()
                }
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => empty(),
            Err(e) => return Err(LedgerError::Read(e)),
        };
        let held = watch::Sender::new(Arc::new(config));
        Ok(Self(Arc::new(Inner { path, key, writer: Mutex::new(()), held })))
    }

    /// The config held.
    pub(crate) fn current(&self) -> Arc<HostConfig> {
        self.0.held.borrow().clone()
    }

    /// Follows the config held.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<HostConfig>> {
        self.0.held.subscribe()
    }

    /// Takes a config in place of the one held, and answers once it is on disk. The same config again is
    /// fine. Runs to its end even when the caller goes away, so disk and memory never part.
    pub(crate) async fn put(&self, config: HostConfig) -> Result<Generation, LedgerError> {
        let ledger = self.clone();
        let written = tokio::task::spawn_blocking(move || ledger.put_blocking(config)).await;
        written.unwrap_or_else(|e| Err(LedgerError::Write(io::Error::other(e))))
    }

    fn put_blocking(&self, config: HostConfig) -> Result<Generation, LedgerError> {
        let Inner { path, key, writer, held } = &*self.0;
        let _writing = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let current = held.borrow().clone();
        let (offered, holds) = (config.generation, current.generation);
        if offered < holds {
            return Err(LedgerError::Stale { offered, held: holds });
        }
        if offered == holds {
            // An empty host holds generation 0, which nobody gave it.
            return if *current == config { Ok(holds) } else { Err(LedgerError::Differs(holds)) };
        }
        durable::write_private(path, &seal(key, &config)?).map_err(LedgerError::Write)?;
        held.send_replace(Arc::new(config));
        Ok(offered)
    }
}

fn seal(key: &SealKey, config: &HostConfig) -> Result<Vec<u8>, LedgerError> {
    let clear = Zeroizing::new(serde_json::to_vec(config).map_err(|_| LedgerError::Seal)?);
    let mut nonce = [0; NONCE_BYTES];
    rand::rngs::OsRng.try_fill_bytes(&mut nonce).map_err(|_| LedgerError::Seal)?;
    let sealed = key
        .cipher()
        .encrypt(XNonce::from_slice(&nonce), Payload { msg: &clear, aad: SEALED_FOR })
        .map_err(|_| LedgerError::Seal)?;
    let envelope = Envelope { format: FORMAT, nonce: hex::encode(nonce), sealed: hex::encode(sealed) };
    serde_json::to_vec(&envelope).map_err(|_| LedgerError::Seal)
}

fn unseal(key: &SealKey, bytes: &[u8]) -> Result<HostConfig, Damage> {
    let envelope: Envelope = serde_json::from_slice(bytes)?;
    if envelope.format != FORMAT {
        return Err(Damage::Format(envelope.format));
    }
    let mut nonce = [0; NONCE_BYTES];
    hex::decode_to_slice(&envelope.nonce, &mut nonce).map_err(|_| Damage::Hex)?;
    let sealed = hex::decode(&envelope.sealed).map_err(|_| Damage::Hex)?;
    let clear = key
        .cipher()
        .decrypt(XNonce::from_slice(&nonce), Payload { msg: &sealed, aad: SEALED_FOR })
        .map_err(|_| Damage::Seal)?;
    Ok(serde_json::from_slice(&Zeroizing::new(clear))?)
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use marcato_api::{HostAddress, HostId, Peer};

    fn config(generation: u64, peers: &[&str]) -> HostConfig {
        let peers = peers
            .iter()
            .map(|id| Peer { id: HostId::new(id).unwrap(), control: HostAddress::Unix("/secret-path".into()) })
            .collect();
        HostConfig { generation: Generation(generation), peers, ..empty() }
    }

    fn open(dir: &Path) -> Ledger {
        Ledger::open(dir, SealKey::ensure(&dir.join("seal.key")).unwrap()).unwrap()
    }

    fn damaged(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().filter(|e| e.as_ref().unwrap().path().to_string_lossy().contains("damaged-")).count()
    }

    #[tokio::test]
    async fn generations_only_grow_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = open(dir.path());
        let changes = ledger.subscribe();
        assert_eq!(ledger.put(config(3, &["a"])).await.unwrap(), Generation(3));
        assert!(changes.has_changed().unwrap());
        assert_eq!(ledger.put(config(3, &["a"])).await.unwrap(), Generation(3), "the same again is fine");
        assert!(matches!(ledger.put(config(3, &["b"])).await, Err(LedgerError::Differs(Generation(3)))));
        assert!(matches!(
            ledger.put(config(2, &["a"])).await,
            Err(LedgerError::Stale { offered: Generation(2), held: Generation(3) })
        ));
        assert_eq!(*open(dir.path()).current(), config(3, &["a"]));
        let raw = fs::read(dir.path().join(FILE)).unwrap();
        assert!(!String::from_utf8_lossy(&raw).contains("secret-path"), "sealed");
    }

    #[tokio::test]
    async fn a_write_that_was_cut_short_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).put(config(1, &["a"])).await.unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join(".partial-abc"), &whole[..whole.len() / 2]).unwrap();
        assert_eq!(open(dir.path()).current().generation, Generation(1));
        assert_eq!(damaged(dir.path()), 0);
    }

    #[tokio::test]
    async fn garbage_is_set_aside_and_the_host_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).put(config(9, &["a"])).await.unwrap();
        let whole = fs::read(dir.path().join(FILE)).unwrap();
        let mut flipped = whole.clone();
        let last_digit = flipped.len() - 3;
        flipped[last_digit] = if flipped[last_digit] == b'0' { b'1' } else { b'0' };
        let cases: [&[u8]; 6] =
            [b"", b"{}", b"\xff\xfe", &whole[..whole.len() - 9], &flipped, br#"{"format":7,"nonce":"","sealed":""}"#];
        for (n, bytes) in cases.iter().enumerate() {
            fs::write(dir.path().join(FILE), bytes).unwrap();
            let ledger = open(dir.path());
            assert_eq!(ledger.current().generation, Generation(0), "case {n}");
            assert_eq!(damaged(dir.path()), n + 1, "case {n}");
            assert!(!dir.path().join(FILE).exists());
        }
        let ledger = open(dir.path());
        ledger.put(config(1, &[])).await.unwrap();
        assert_eq!(open(dir.path()).current().generation, Generation(1));
    }

    #[tokio::test]
    async fn another_key_does_not_open_it() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).put(config(1, &["a"])).await.unwrap();
        fs::remove_file(dir.path().join("seal.key")).unwrap();
        assert_eq!(open(dir.path()).current().generation, Generation(0));
        assert_eq!(damaged(dir.path()), 1);
        fs::write(dir.path().join("seal.key"), b"short").unwrap();
        assert!(matches!(SealKey::ensure(&dir.path().join("seal.key")), Err(LedgerError::Key { .. })));
    }
}
