//! Fuzz targets: the ledger's file and the key that seals it, as a disk or a stranger may have left them.

use std::cell::Cell;

use marcato_api::{HostAddress, HostId, Peer};
use marcato_fuzz::{Edits, JsonInput, target};
use serde_json::Value;

use super::*;

fn config(generation: u64, peer: &str) -> HostConfig {
    let control = HostAddress::Unix("/run/peer.sock".into());
    let peers = vec![Peer { id: HostId::new(peer).unwrap(), control }];
    HostConfig { generation: Generation(generation), peers, ..empty() }
}

fn key(byte: u8) -> SealKey {
    SealKey(Zeroizing::new([byte; KEY_BYTES]))
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect()
}

/// What is accepted is a config that was sealed here, whole: nothing that was changed, mixed, or sealed by another key.
/// Everything else is set aside byte for byte, and the host starts empty and takes a config again.
#[test]
fn fuzz_ledger() {
    let configs = [config(3, "a"), config(5, "b")];
    let own: Vec<Vec<u8>> = configs.iter().map(|c| seal(&key(7), c).unwrap()).collect();
    let foreign = seal(&key(8), &configs[0]).unwrap();
    let good: Vec<Value> = own.iter().chain([&foreign]).map(|b| serde_json::from_slice(b).unwrap()).collect();
    let text = |n: usize, field: &str| good[n][field].as_str().unwrap().to_owned();
    let words =
        [text(0, "nonce"), text(1, "nonce"), text(1, "sealed"), text(2, "sealed"), "format".into(), "nonce".into()];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let accepted = Cell::new(0);
    target!(120, |input: &JsonInput| {
        let path = dir.path().join(FILE);
        let bytes = input.bytes(&good, &words);
        fs::write(&path, &bytes).unwrap();
        let ledger = Ledger::open(dir.path(), key(7)).unwrap();
        let held = ledger.current();
        if held.generation != Generation(0) {
            assert!(configs.contains(&held), "what nobody sealed was accepted: {held:?}");
            assert_eq!(files(dir.path()), [path]);
            accepted.set(accepted.get() + 1);
            return;
        }
        assert_eq!(*held, empty());
        let [aside] = files(dir.path()).try_into().expect("one file: what was damaged");
        assert!(aside.to_string_lossy().contains("damaged-") && fs::read(&aside).unwrap() == bytes);
        assert_eq!(ledger.put_blocking(config(1, "c")).unwrap(), Generation(1));
        assert_eq!(*Ledger::open(dir.path(), key(7)).unwrap().current(), config(1, "c"));
        fs::remove_file(aside).unwrap();
    });
    assert!(accepted.get() > 0, "not even the good ones were");
}

/// A key file is a key or an error that names it; it is never made anew over one that is there.
#[test]
fn fuzz_seal_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seal.key");
    target!(300, |edits: &Edits| {
        let bytes = edits.apply(&[7; KEY_BYTES], &[b"\0"]);
        fs::write(&path, &bytes).unwrap();
        match SealKey::ensure(&path) {
            Ok(key) => assert_eq!(key.0.as_slice(), bytes),
            Err(error) => {
                assert!(bytes.len() != KEY_BYTES && error.to_string().contains("seal.key"), "{error}");
            }
        }
        assert_eq!(fs::read(&path).unwrap(), bytes);
    });
}
