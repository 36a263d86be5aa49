//! Every timeout and limit of the edge in one plain struct, each with what it governs.

use std::net::IpAddr;
use std::str::FromStr;

use marcato_api::{Bytes, Millis};
use marcato_balance::BreakerPolicy;

/// Timeouts and limits of the edge. No `Default`: [`EdgeConfig::standard`] says where numbers come from.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    /// Open client connections over all listeners. More wait in the kernel's backlog.
    pub max_connections: usize,
    /// Requests at once over all connections. More get 503.
    pub max_in_flight: i64,
    /// Request line and header fields together. Longer gets 431. At most 100 fields.
    pub max_header_bytes: Bytes,
    /// HTTP/1: from the moment a connection waits for a request to the end of its header, so it also
    /// closes idle kept-alive connections. Plain listeners: also until the first byte.
    pub header_timeout_ms: Millis,
    /// HTTP/2: a connection without a request for this long is closed (GOAWAY).
    pub http2_idle_ms: Millis,
    /// HTTP/2: streams at once per connection.
    pub http2_streams: u32,
    /// A TLS handshake, from accept to done.
    pub tls_handshake_ms: Millis,
    /// A client that takes none of the response's bytes for this long is cut.
    pub write_stall_ms: Millis,
    /// A client that sends none of the request body's bytes for this long gets 408.
    pub upload_idle_ms: Millis,
    /// An instance that sends none of the response body's bytes for this long is cut.
    pub response_idle_ms: Millis,
    /// Added to the app's own time limit before the edge gives up on a host with 504. The host enforces
    /// the limit itself (`limits.time_ms`, its queue included), so this fires only when the host hangs.
    /// It counts for each host that is asked: what one refused after a while, another gets whole.
    pub host_grace_ms: Millis,
    /// Connecting to a host, TLS handshake included.
    pub connect_ms: Millis,
    /// How long a request waits for a first instance of its app. Then 503 `no-instance`.
    pub instance_wait_ms: Millis,
    /// How long a request that was never sent goes on trying when no other instance is there (a
    /// host that restarts). Then 502.
    pub reconnect_wait_ms: Millis,
    /// Requests that may wait at once in those two ways. More fail at once.
    pub max_waiting: usize,
    /// How long a client waits, on average, for the news that its app's queue or memory is full: half as long to half as
    /// long again. One that asks again at once would take the router's time, and the hosts', from other apps;
    /// `Retry-After` asks for as long.
    pub refusal_hold_ms: Millis,
    /// Clients that may wait so at once. More hear it at once.
    pub max_held: usize,
    /// Idle connections kept per host.
    pub pool_idle_per_host: usize,
    /// How long an idle connection to a host is kept: below the host's own idle timeout.
    pub pool_idle_ms: Millis,
    /// Attempts per request, the first included (at least 1).
    pub max_attempts: u32,
    /// Retries allowed in the long run, in percent of requests.
    pub retry_percent: u32,
    /// Retries per second allowed in any case, so that little traffic can be retried too.
    pub retry_min_per_s: u32,
    /// A request body is kept for another attempt up to this size.
    pub replay_bytes: Bytes,
    /// When failing instances are left out.
    pub breaker: BreakerPolicy,
    /// How long shutdown waits for requests in flight.
    pub drain_ms: Millis,
    /// Proxies in front whose `X-Forwarded-*` and `Forwarded` are kept and added to. From others
    /// they are replaced.
    pub trusted_proxies: Vec<IpRange>,
}

impl EdgeConfig {
    /// What suits a machine of 2 to 64 cores that faces clients directly; timeouts are those that
    /// nginx and Envoy ship with, shortened where the hosts' own limits are shorter.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            max_connections: 10_000,
            max_in_flight: 20_000,
            max_header_bytes: Bytes::kib(32),
            header_timeout_ms: Millis::secs(30),
            http2_idle_ms: Millis::secs(120),
            http2_streams: 128,
            tls_handshake_ms: Millis::secs(10),
            write_stall_ms: Millis::secs(30),
            upload_idle_ms: Millis::secs(30),
            response_idle_ms: Millis::secs(120),
            host_grace_ms: Millis::secs(10),
            connect_ms: Millis::secs(3),
            instance_wait_ms: Millis::secs(10),
            reconnect_wait_ms: Millis::secs(3),
            max_waiting: 2_000,
            refusal_hold_ms: Millis::secs(1),
            max_held: 4_000,
            pool_idle_per_host: 512,
            pool_idle_ms: Millis::secs(20),
            max_attempts: 3,
            retry_percent: 20,
            retry_min_per_s: 10,
            replay_bytes: Bytes::kib(64),
            breaker: BreakerPolicy::standard(),
            drain_ms: Millis::secs(30),
            trusted_proxies: Vec::new(),
        }
    }
}

/// A range of addresses in CIDR notation (RFC 4632): `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRange {
    base: IpAddr,
    /// Leading bits that count, of 32 or 128.
    bits: u32,
}

impl IpRange {
    /// Whether `ip` is in it. An IPv4 address in IPv6 clothes counts as IPv4.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let rest = 32 - self.bits;
                u64::from(a.to_bits()) >> rest == u64::from(b.to_bits()) >> rest
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let different = a.to_bits() ^ b.to_bits();
                different == 0 || different.leading_zeros() >= self.bits
            }
            _ => false,
        }
    }
}

impl FromStr for IpRange {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("address range {s:?}: expected IP or IP/BITS");
        let (ip, bits) = match s.split_once('/') {
            Some((ip, bits)) => (ip, Some(bits.parse::<u32>().map_err(|_| wrong())?)),
            None => (s, None),
        };
        let base: IpAddr = ip.parse().map_err(|_| wrong())?;
        let all = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        if bits > all { Err(wrong()) } else { Ok(Self { base, bits }) }
    }
}
