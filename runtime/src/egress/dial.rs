//! How outbound connections are made: the trait, and the one place that looks names up and says which addresses
//! nobody may reach.
//!
//! The connection goes to the very address that was checked, so a name that resolves to another address a moment
//! later gains nothing (DNS rebinding). Runs in the host daemon; a worker only gets the connected socket.

use std::io;
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
    pub fn connect(error: &io::Error) -> Self {
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
    /// Whether loopback, private and link-local addresses may be reached: the operator's word, for a host or an app.
    pub allow_private: bool,
}

impl Dialer for NetworkDialer {
    fn connect<'a>(
        &'a self,
        _: &'a InstanceId,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, DialError>> {
        let lookup = async move { Ok(tokio::net::lookup_host((host, port)).await?.take(ADDRESSES).collect()) };
        Box::pin(dial(self.allow_private, lookup, TcpStream::connect))
    }
}

/// Looks a name up once, and connects to addresses that came of it. The connector never hears the name.
async fn dial<C: Future<Output = io::Result<TcpStream>> + Send>(
    allow_private: bool,
    lookup: impl Future<Output = io::Result<Vec<SocketAddr>>> + Send,
    connect: impl Fn(SocketAddr) -> C + Send,
) -> Result<TcpStream, DialError> {
    let found = lookup.await.map_err(|_| DialError::Name)?;
    let mut last = DialError::NoAddress;
    for address in found {
        if !allow_private && is_internal(address.ip()) {
            if last == DialError::NoAddress {
                last = DialError::Internal;
            }
            continue;
        }
        match connect(address).await {
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
        || ip == Ipv4Addr::new(168, 63, 129, 16) // a public address by number, and Azure's host to its guests
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A name server of the attacker's: another answer each time, the last one for ever.
    struct Rebinding {
        answers: Vec<Vec<SocketAddr>>,
        asked: AtomicUsize,
    }

    impl Rebinding {
        fn new(answers: &[&[&str]]) -> Self {
            let addresses =
                |answer: &&[&str]| answer.iter().map(|a| SocketAddr::new(a.parse().expect(a), 80)).collect();
            Self { answers: answers.iter().map(addresses).collect(), asked: AtomicUsize::new(0) }
        }

        async fn lookup(&self) -> io::Result<Vec<SocketAddr>> {
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            Ok(self.answers[asked.min(self.answers.len() - 1)].clone())
        }
    }

    /// Connects to nothing and keeps what it was asked for; the first `refuse` addresses do not answer.
    #[derive(Default)]
    struct Wire(Mutex<Vec<IpAddr>>);

    impl Wire {
        fn connect(&self, address: SocketAddr, refuse: usize) -> impl Future<Output = io::Result<TcpStream>> + Send {
            let mut asked = self.0.lock().expect("not poisoned");
            asked.push(address.ip());
            let refused = asked.len() <= refuse;
            async move {
                if refused {
                    return Err(io::ErrorKind::ConnectionRefused.into());
                }
                // Any socket will do: nothing is said on it.
                let (ours, _) = std::os::unix::net::UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                TcpStream::from_std(std::os::fd::OwnedFd::from(ours).into())
            }
        }

        async fn dial(&self, allow_private: bool, name: &Rebinding, refuse: usize) -> Result<(), DialError> {
            dial(allow_private, name.lookup(), |address| self.connect(address, refuse)).await.map(drop)
        }

        fn asked(&self) -> Vec<String> {
            self.0.lock().expect("not poisoned").iter().map(ToString::to_string).collect()
        }
    }

    #[tokio::test]
    async fn a_name_that_is_rebound_leads_to_the_address_that_was_checked() {
        let (public, inside): (&[&str], &[&str]) = (&["93.184.216.34"], &["127.0.0.1"]);
        let name = Rebinding::new(&[public, inside]);
        // The attack, on whoever checks a name and then connects to that name.
        assert!(!is_internal(name.lookup().await.expect("checked")[0].ip()));
        assert!(is_internal(name.lookup().await.expect("connected to")[0].ip()));

        let (name, wire) = (Rebinding::new(&[public, inside]), Wire::default());
        wire.dial(false, &name, 0).await.expect("to where the check led");
        assert_eq!((wire.asked(), name.asked.load(Ordering::SeqCst)), (vec!["93.184.216.34".into()], 1));
        // The next request is checked as the first was.
        assert_eq!(wire.dial(false, &name, 0).await, Err(DialError::Internal));
        assert_eq!(wire.asked().len(), 1);
        wire.dial(true, &name, 0).await.expect("the operator allows it");
        assert_eq!(wire.asked(), ["93.184.216.34", "127.0.0.1"]);
    }

    /// A name with a public address that does not answer, so that a client goes on to the next.
    #[tokio::test]
    async fn the_other_addresses_of_a_name_are_checked_each() {
        let mixed: &[&str] = &["127.0.0.1", "93.184.216.34", "::1", "169.254.169.254", "2606:4700::1111"];
        let (name, wire) = (Rebinding::new(&[mixed]), Wire::default());
        wire.dial(false, &name, 1).await.expect("the second public one");
        assert_eq!(wire.asked(), ["93.184.216.34", "2606:4700::1111"]);
        let wire = Wire::default();
        let refused = wire.dial(false, &name, 9).await;
        assert!(matches!(refused, Err(DialError::Connect { .. })), "{refused:?}");
        assert_eq!(wire.asked(), ["93.184.216.34", "2606:4700::1111"]);
        let wire = Wire::default();
        wire.dial(true, &name, 0).await.expect("without the check the first");
        assert_eq!(wire.asked(), ["127.0.0.1"]);
    }

    /// Where clouds tell a machine who it is and give it keys: AWS, Azure, GCP, OpenStack, DigitalOcean, Oracle; AWS over
    /// IPv6, its DNS and time; ECS; Alibaba; Azure's host; and the same in the clothes of IPv6.
    #[tokio::test]
    async fn metadata_services_are_not_connected_to() {
        for address in [
            "169.254.169.254",
            "fd00:ec2::254",
            "fd00:ec2::253",
            "fd00:ec2::123",
            "169.254.170.2",
            "169.254.170.23",
            "fd00:ec2::23",
            "fd20:ce::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::ffff:169.254.169.254",
            "::ffff:100.100.100.200",
            "::ffff:168.63.129.16",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::169.254.169.254",
        ] {
            let (name, wire) = (Rebinding::new(&[&[address]]), Wire::default());
            assert_eq!(wire.dial(false, &name, 0).await, Err(DialError::Internal), "{address}");
            assert!(wire.asked().is_empty(), "{address}");
            wire.dial(true, &name, 0).await.unwrap_or_else(|e| panic!("{address} without the check: {e}"));
        }
    }
}
