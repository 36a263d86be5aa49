//! How outbound connections are made: the trait, and the one place that looks names up and says which addresses
//! nobody may reach.
//!
//! The connection goes to the very address that was checked, so a name that resolves to another address a moment
//! later gains nothing (DNS rebinding). Runs in the host daemon; a worker only gets the connected socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use futures::future::BoxFuture;
use marcato_api::InstanceId;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// Addresses of a name that are tried.
const ADDRESSES: usize = 16;

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DialError {
    /// The name cannot be looked up.
    #[error("the name cannot be looked up")]
    Name,
    /// The name has no address.
    #[error("the name has no address")]
    NoAddress,
    /// Its addresses are of this machine, of a private network, or of nobody.
    #[error("its address is internal")]
    Internal,
    /// No address takes the connection.
    #[error("cannot connect: {reason}")]
    Connect {
        /// The system's error number, where there is one.
        os: Option<i32>,
        /// The same in words.
        reason: String,
    },
}

impl DialError {
    /// A connection that failed.
    #[must_use]
    pub fn connect(error: &std::io::Error) -> Self {
        Self::Connect { os: error.raw_os_error(), reason: error.to_string() }
    }
}

/// Makes the connections of guests.
pub trait Dialer: Send + Sync + 'static {
    /// Connects to a host that the instance's manifest allows. The name is without brackets.
    fn connect<'a>(
        &'a self,
        instance: &'a InstanceId,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, DialError>>;
}

/// Looks names up, checks addresses, connects.
#[derive(Debug, Clone, Copy)]
pub struct NetworkDialer {
    /// Whether loopback, private and link-local addresses may be reached. Off but for tests.
    pub allow_private: bool,
}

impl Dialer for NetworkDialer {
    fn connect<'a>(
        &'a self,
        _: &'a InstanceId,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, DialError>> {
        Box::pin(connect(self.allow_private, host, port))
    }
}

async fn connect(allow_private: bool, host: &str, port: u16) -> Result<TcpStream, DialError> {
    let found = tokio::net::lookup_host((host, port)).await.map_err(|_| DialError::Name)?;
    let mut last = DialError::NoAddress;
    for address in found.take(ADDRESSES).collect::<Vec<SocketAddr>>() {
        if !allow_private && is_internal(address.ip()) {
            if last == DialError::NoAddress {
                last = DialError::Internal;
            }
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // Latency over throughput; a kernel that refuses it changes nothing else.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => last = DialError::connect(&e),
        }
    }
    Err(last)
}

/// Whether an address belongs to this machine, to a private network, or to nobody: nothing that a
/// guest may reach. Sources: IANA special-purpose address registries for IPv4 and IPv6.
pub(super) fn is_internal(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_internal_v4(v4),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_internal_v4(v4),
            None => is_internal_v6(v6),
        },
    }
}

fn is_internal_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local() // with 169.254.169.254, the clouds' metadata
        || ip.is_multicast()
        || ip.is_broadcast()
        || ip.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b)) // shared address space
        || (a == 192 && b == 0 && c == 0) // IETF protocol assignments
        || (a == 192 && b == 88 && c == 99) // 6to4 relays
        || (a == 198 && (b == 18 || b == 19)) // benchmarking
}

fn is_internal_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_internal_v4(Ipv4Addr::new(a, b, c, d))
    };
    ip.is_unspecified()
        || ip.is_loopback()
        || ip.is_multicast()
        || (s[0] & 0xfe00) == 0xfc00 // unique local
        || (s[0] & 0xffc0) == 0xfe80 // link local
        || (s[0] & 0xffc0) == 0xfec0 // site local
        || (s[0] == 0x2001 && s[1] == 0xdb8) // documentation
        || (s[0] == 0x2001 && s[1] < 0x200) // IETF protocol assignments, Teredo among them
        || s[0] == 0x100 // discard only
        || (s[0] == 0x64 && s[1] == 0xff9b && (s[2] != 0 || embedded(s[6], s[7]))) // NAT64
        || (s[0] == 0x2002 && embedded(s[1], s[2])) // 6to4
        || (s[..6] == [0; 6]) // IPv4-compatible
}
