//! The brake on guessing: so many wrong tokens per minute and peer, then 429 whatever comes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong tokens that a peer may send per window.
const ALLOWED: u32 = 20;
/// The window.
const WINDOW: Duration = Duration::from_secs(60);
/// Peers that are remembered; beyond it the oldest are forgotten.
const PEERS: usize = 4_096;

struct Failures {
    since: Instant,
    count: u32,
}

/// Failures by peer.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<HashMap<IpAddr, Failures>>);

/// IPv6 peers own whole networks: they are counted by their /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

impl Throttle {
    /// How long the peer has to wait, when it has to.
    pub(crate) fn wait(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let failures = peers.get(&network(peer))?;
        let age = now.saturating_duration_since(failures.since);
        (failures.count >= ALLOWED && age < WINDOW).then(|| WINDOW - age)
    }

    /// Counts a wrong token.
    pub(crate) fn failed(&self, peer: IpAddr, now: Instant) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS {
            peers.retain(|_, f| now.saturating_duration_since(f.since) < WINDOW);
        }
        if peers.len() >= PEERS
            && let Some(oldest) = peers.iter().min_by_key(|(_, f)| f.since).map(|(p, _)| *p)
        {
            peers.remove(&oldest);
        }
        let failures = peers.entry(network(peer)).or_insert(Failures { since: now, count: 0 });
        if now.saturating_duration_since(failures.since) >= WINDOW {
            *failures = Failures { since: now, count: 0 };
        }
        failures.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_waits_after_too_many_and_others_do_not() {
        let throttle = Throttle::default();
        let (peer, other): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let start = Instant::now();
        for _ in 0..ALLOWED {
            assert_eq!(throttle.wait(peer, start), None);
            throttle.failed(peer, start);
        }
        assert_eq!(throttle.wait(peer, start), Some(WINDOW));
        assert_eq!(throttle.wait(other, start), None);
        assert_eq!(throttle.wait(peer, start + WINDOW), None);
        throttle.failed(peer, start + WINDOW);
        assert_eq!(throttle.wait(peer, start + WINDOW), None, "a new window begins");
    }

    #[test]
    fn a_flood_of_peers_does_not_grow_the_table() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for n in 0..(PEERS as u32 + 500) {
            throttle.failed(IpAddr::V4(n.into()), now);
        }
        assert!(throttle.0.lock().unwrap().len() <= PEERS);
    }
}
