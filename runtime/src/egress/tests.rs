//! Patterns, addresses, and servers of our own over TLS.

use marcato_api::Bytes as ByteCount;

use super::*;

fn instance() -> InstanceId {
    InstanceId::new("app-r1-0").expect("an id")
}

fn network(allow_private: bool, ca_pem: Option<&str>) -> Network {
    let dialer = Arc::new(NetworkDialer { allow_private });
    Network::new(dialer, ca_pem.map(str::as_bytes)).expect("usable authorities")
}

#[test]
fn patterns_match_whole_names_and_ports() {
    let egress = |hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|h| (*h).to_owned()).collect();
        Egress::new(instance(), &hosts, Limits::default(), &network(false, None), Arc::new(LimitCounters::default()))
    };
    let some = egress(&["api.example.org", "*.example.com", "db.internal:8080", "[2001:db8::1]:80"]).expect("valid");
    for (host, port, tls, expected) in [
        ("api.example.org", 443, true, true),
        ("API.Example.Org.", 443, true, true),
        ("api.example.org", 80, false, true),
        ("api.example.org", 8443, true, false),
        ("xapi.example.org", 443, true, false),
        ("example.com", 443, true, false),
        ("a.example.com", 443, true, true),
        ("a.b.example.com", 443, true, true),
        ("badexample.com", 443, true, false),
        (".example.com", 443, true, false),
        ("db.internal", 8080, false, true),
        ("db.internal", 80, false, false),
        ("[2001:db8::1]", 80, false, true),
    ] {
        assert_eq!(some.allows(host, port, if tls { 443 } else { 80 }), expected, "{host}:{port}");
    }
    for bad in ["", "*", "*.", "https://a.b", "a b", "a/b", "a:", "a:99999", "user@host", "**.a", "a.*.b", "\u{0}"] {
        assert!(egress(&[bad]).is_err(), "{bad:?}");
    }
}

#[test]
fn internal_addresses_are_known() {
    for ip in [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd12::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
        "::7f00:1",
        "fec0::1",
    ] {
        assert!(is_internal(ip.parse().expect("an address")), "{ip}");
    }
    for ip in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
        assert!(!is_internal(ip.parse().expect("an address")), "{ip}");
    }
}

/// Keeps what the platform says.
#[derive(Default)]
struct Said(std::sync::Mutex<Vec<String>>);

impl crate::LogSink for Said {
    fn line(&self, _: &str, _: marcato_api::LogStream, text: &str) {
        self.0.lock().expect("not poisoned").push(text.to_owned());
    }
}

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("valid");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// The settings of a server whose certificate is for `name` and lasts until the year `until`.
    fn server(&self, name: &str, until: i32) -> Arc<rustls::ServerConfig> {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .expect("they belong together");
        Arc::new(config)
    }
}

/// A server on a free port that answers everything with "ok", over TLS when it has settings for it.
async fn serve(tasks: &mut tokio::task::JoinSet<()>, tls: Option<Arc<rustls::ServerConfig>>) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            match &tls {
                None => answer(stream).await,
                // A client that does not trust us ends the handshake.
                Some(tls) => {
                    if let Ok(stream) = tokio_rustls::TlsAcceptor::from(Arc::clone(tls)).accept(stream).await {
                        answer(stream).await;
                    }
                }
            }
        }
    });
    port
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            // What speaks TLS to a server without it hears that.
            Ok(byte) if head.is_empty() && !byte.is_ascii_uppercase() => break,
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    // The client may be gone.
    let _ = stream.write_all(response).await;
    let _ = stream.shutdown().await;
}

struct Guest {
    egress: Arc<Egress>,
    log: Arc<SandboxLog>,
    account: Arc<SandboxAccount>,
    counters: Arc<LimitCounters>,
    said: Arc<Said>,
}

impl Guest {
    fn new(network: &Network, hosts: &[String]) -> Self {
        Self::limited(network, hosts, Limits::default())
    }

    fn limited(network: &Network, hosts: &[String], limits: Limits) -> Self {
        let counters = Arc::new(LimitCounters::default());
        let said = Arc::new(Said::default());
        let sink = Arc::clone(&said) as Arc<dyn crate::LogSink>;
        let log = crate::logs::InstanceLog::new(sink, Arc::default(), Arc::clone(&counters));
        let log = Arc::new(SandboxLog::new(Arc::new(log)));
        let app = Arc::new(crate::budget::AppAccount::new(&marcato_api::AppBudget::default()));
        let at_once = limits.outbound_concurrent.into();
        let account = SandboxAccount::new(limits.buffer_bytes.0, app, Arc::clone(&counters), Arc::clone(&log), at_once);
        account.grant(limits.outbound_requests, limits.outbound_bytes.0, 1);
        let egress = Egress::new(instance(), hosts, limits, network, Arc::clone(&counters)).expect("valid");
        Self { egress: Arc::new(egress), log, account, counters, said }
    }

    async fn begin(&self, url: &str, body: &'static [u8]) -> Result<Sent, Error> {
        let body = http_body_util::Full::new(bytes::Bytes::from_static(body)).map_err(|e| match e {}).boxed_unsync();
        let host = url.split('/').nth(2).expect("a URL");
        let request = http::Request::builder().uri(url).header("host", host).body(body).expect("valid");
        let (egress, log) = (Arc::clone(&self.egress), Arc::clone(&self.log));
        let mut hooks = Hooks { egress, log, account: Arc::clone(&self.account) };
        Box::into_pin(hooks.send_request(request, None, Box::new(std::future::ready(Ok(()))))).await
    }

    async fn finish((response, io): Sent) -> Result<String, Error> {
        let (body, io) = tokio::join!(response.into_body().collect(), Box::into_pin(io));
        io?;
        Ok(String::from_utf8_lossy(&body?.to_bytes()).into_owned())
    }

    async fn ask(&self, url: &str) -> Result<String, Error> {
        Self::finish(self.begin(url, b"").await?).await
    }

    fn logged(&self, text: &str) -> bool {
        self.said.0.lock().expect("not poisoned").iter().any(|line| line.contains(text))
    }
}

#[tokio::test]
async fn https_needs_a_trusted_certificate_for_the_name() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let ca = format!("# The cloud's own authority.\n{}", ours.pem);
    let mut tasks = tokio::task::JoinSet::new();
    let good = serve(&mut tasks, Some(ours.server("localhost", 2100))).await;
    let other_name = serve(&mut tasks, Some(ours.server("other.example", 2100))).await;
    let expired = serve(&mut tasks, Some(ours.server("localhost", 2001))).await;
    let unknown = serve(&mut tasks, Some(foreign.server("localhost", 2100))).await;
    let plain = serve(&mut tasks, None).await;
    let hosts: Vec<_> =
        [good, other_name, expired, unknown, plain].iter().map(|port| format!("localhost:{port}")).collect();

    let guest = Guest::new(&network(true, Some(&ca)), &hosts);
    assert_eq!(guest.ask(&format!("https://localhost:{good}/")).await.expect("trusted"), "ok");
    for (port, why) in [(other_name, "not valid for name"), (expired, "xpired"), (unknown, "UnknownIssuer")] {
        let refused = guest.ask(&format!("https://localhost:{port}/")).await;
        assert!(matches!(refused, Err(Error::TlsCertificateError)), "{why}: {refused:?}");
        assert!(guest.logged(why), "the log says why: {why}: {:?}", guest.said.0);
    }
    // Not TLS at all: never sent in the clear instead.
    let refused = guest.ask(&format!("https://localhost:{plain}/")).await;
    assert!(matches!(refused, Err(Error::Tls(_))), "{refused:?}");

    // Without it the public authorities alone count.
    let public = Guest::new(&network(true, None), &hosts);
    let refused = public.ask(&format!("https://localhost:{good}/")).await;
    assert!(matches!(refused, Err(Error::TlsCertificateError)), "{refused:?}");
}

#[tokio::test]
async fn plain_http_and_internal_addresses_need_their_permission() {
    let mut tasks = tokio::task::JoinSet::new();
    let (named, unnamed) = (serve(&mut tasks, None).await, serve(&mut tasks, None).await);
    // A host without a port stands for the scheme's own port only.
    let hosts = [format!("localhost:{named}"), "localhost".to_owned()];
    let guest = Guest::new(&network(true, None), &hosts);
    assert_eq!(guest.ask(&format!("http://localhost:{named}/")).await.expect("named"), "ok");
    for url in [format!("http://localhost:{unnamed}/"), format!("http://127.0.0.1:{named}/")] {
        let refused = guest.ask(&url).await;
        assert!(matches!(refused, Err(Error::HttpRequestDenied)), "{url}: {refused:?}");
    }
    assert!(guest.logged("not in allowed_outbound_hosts"));
    // The manifest does not decide on internal addresses: the operator does.
    let guest = Guest::new(&network(false, None), &hosts);
    let refused = guest.ask(&format!("http://localhost:{named}/")).await;
    assert!(matches!(refused, Err(Error::DestinationIpProhibited)), "{refused:?}");
    assert!(guest.logged("its address is internal"));
}

#[tokio::test]
async fn outbound_requests_are_counted_and_so_are_their_bytes() {
    let mut tasks = tokio::task::JoinSet::new();
    let port = serve(&mut tasks, None).await;
    let (url, hosts) = (format!("http://localhost:{port}/"), [format!("localhost:{port}")]);
    let network = network(true, None);
    let limits =
        Limits { outbound_requests: 3, outbound_concurrent: 1, outbound_bytes: ByteCount(5), ..Limits::default() };
    let guest = Guest::limited(&network, &hosts, limits);
    let open = guest.begin(&url, b"").await.expect("the first");
    let refused = guest.begin(&url, b"").await.map(drop);
    assert!(matches!(refused, Err(Error::ConnectionLimitReached)), "{refused:?}");
    assert_eq!(guest.counters.fired(Limit::OutboundConcurrent), 1);
    assert!(guest.logged("limit outbound_concurrent (1) reached"), "{:?}", guest.said.0);
    assert_eq!(Guest::finish(open).await.expect("an answer"), "ok");
    // Two of five bytes are used: the answer's "ok" is one too many after two more.
    let over = Guest::finish(guest.begin(&url, b"ab").await.expect("the third")).await;
    assert!(matches!(over, Err(Error::HttpResponseBodySize(Some(5)))), "{over:?}");
    assert_eq!(guest.counters.fired(Limit::OutboundBytes), 1);
    let refused = guest.ask(&url).await;
    assert!(matches!(refused, Err(Error::ConnectionLimitReached)), "{refused:?}");
    assert_eq!(guest.counters.fired(Limit::OutboundRequests), 1);
    assert_eq!(guest.account.outbound.used(), 0, "all is given back");
    // The next request of the sandbox has its own.
    guest.account.grant(1, 5, 1);
    assert_eq!(guest.ask(&url).await.expect("granted"), "ok");

    let none = Guest::limited(&network, &hosts, Limits { outbound_bytes: ByteCount(1), ..Limits::default() });
    let over = none.begin(&url, b"ab").await.map(drop);
    assert!(matches!(over, Err(Error::HttpRequestBodySize(Some(1)))), "{over:?}");
}

#[test]
fn a_text_without_a_usable_authority_is_an_error() {
    let good = Authority::new("one").pem;
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let noise = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for bad in ["", "nonsense", "\0\u{1b}", key, noise, &good[..good.len() / 2], &format!("{good}{noise}")] {
        let refused = check_outbound_ca(bad.as_bytes());
        assert!(matches!(refused, Err(crate::RuntimeError::OutboundCa(_))), "{bad:?}: {refused:?}");
    }
    check_outbound_ca(format!("{good}\n{}", Authority::new("two").pem).as_bytes()).expect("usable");
}
