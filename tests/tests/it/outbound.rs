//! Outbound HTTP of guests to servers of the test's own: TLS is verified against the operator's authority,
//! and both the manifest and the operator have a say in where a guest may go.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use marcato_tests::{Cluster, Deploy, guest};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::{cluster, cluster_with};

struct Authority(rcgen::Issuer<'static, rcgen::KeyPair>);

impl Authority {
    /// Made anew, its certificate written to `file`.
    fn create(file: &Path, name: &str) -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        std::fs::write(file, params.self_signed(&key)?.pem())?;
        Ok(Self(rcgen::Issuer::new(params, key)))
    }

    fn server(&self, name: &str) -> Result<TlsAcceptor> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &self.0)?;
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// A server that answers 204 to everything; gives its port.
async fn serve(tasks: &mut JoinSet<()>, tls: Option<TlsAcceptor>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us goes away; the next one counts.
            let _ = match &tls {
                None => answer(stream).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => answer(stream).await,
                    Err(e) => Err(e),
                },
            };
        }
    });
    Ok(port)
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await?;
    stream.shutdown().await
}

async fn asked(cluster: &Cluster, app: &str, url: &str) -> Result<String> {
    Ok(cluster.app(app)?.get(&format!("/outbound?url={url}")).await?.text())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_asks_https_servers_of_an_authority_that_the_operator_trusts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cloud-ca.pem");
    let ours = Authority::create(&file, "ours")?;
    let foreign = Authority::create(&folder.path().join("foreign-ca.pem"), "foreign")?;
    let mut tasks = JoinSet::new();
    let good = serve(&mut tasks, Some(ours.server("localhost")?)).await?;
    let other_name = serve(&mut tasks, Some(ours.server("other.example")?)).await?;
    let unknown = serve(&mut tasks, Some(foreign.server("localhost")?)).await?;
    let plain = serve(&mut tasks, None).await?;
    let unnamed = serve(&mut tasks, None).await?;

    let arguments = ["--allow-private-egress", "--outbound-ca", file.to_str().context("utf-8")?];
    let cluster = cluster_with(1, &arguments).await?;
    let admin = cluster.admin()?;
    let deploy = Deploy::new("asker").with(|c| {
        c.allowed_outbound_hosts =
            [good, other_name, unknown, plain].iter().map(|port| format!("localhost:{port}")).collect();
    });
    admin.deploy(&guest("guest-behaviour")?, &deploy).await?;

    assert_eq!(asked(&cluster, "asker", &format!("https://localhost:{good}/")).await?, "outbound 204\n");
    assert_eq!(asked(&cluster, "asker", &format!("http://localhost:{plain}/")).await?, "outbound 204\n");
    for (port, why) in [(other_name, "not valid for name"), (unknown, "UnknownIssuer")] {
        let refused = asked(&cluster, "asker", &format!("https://localhost:{port}/")).await?;
        assert!(refused.contains("TlsCertificateError"), "{why}: {refused}");
        let line = admin.logged("asker", why).await?;
        assert!(line.text.contains(&format!("localhost:{port}")), "{}", line.text);
    }
    let refused = asked(&cluster, "asker", &format!("http://localhost:{unnamed}/")).await?;
    assert!(refused.contains("HttpRequestDenied"), "not in the manifest: {refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn internal_addresses_are_refused_whatever_the_manifest_names() -> Result<()> {
    let mut tasks = JoinSet::new();
    let plain = serve(&mut tasks, None).await?;
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let deploy = Deploy::new("asker").with(|c| {
        c.allowed_outbound_hosts = vec![format!("localhost:{plain}"), format!("127.0.0.1:{plain}")];
    });
    admin.deploy(&guest("guest-behaviour")?, &deploy).await?;
    for host in ["localhost", "127.0.0.1"] {
        let refused = asked(&cluster, "asker", &format!("http://{host}:{plain}/")).await?;
        assert!(refused.contains("DestinationIpProhibited"), "{host}: {refused}");
    }
    admin.logged("asker", "its address is internal").await?;
    Ok(())
}

/// The operator's policy opens private addresses for one app; its neighbour in the same worker stays without.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_lets_one_app_alone_reach_a_private_address() -> Result<()> {
    let mut tasks = JoinSet::new();
    let plain = serve(&mut tasks, None).await?;
    let cluster = cluster(1).await?;
    let admin = cluster.admin()?;
    let policy = ["policy", "set", "--org", "default", "--app", "inside", "--allow-private-egress", "true"];
    let set = cluster.cli(&policy).await?;
    assert!(set.status.success(), "{}", String::from_utf8_lossy(&set.stderr));
    for app in ["inside", "outside"] {
        let deploy = Deploy::new(app).with(|c| c.allowed_outbound_hosts = vec![format!("localhost:{plain}")]);
        admin.deploy(&guest("guest-behaviour")?, &deploy).await?;
    }
    let url = format!("http://localhost:{plain}/");
    assert_eq!(asked(&cluster, "inside", &url).await?, "outbound 204\n");
    let refused = asked(&cluster, "outside", &url).await?;
    assert!(refused.contains("DestinationIpProhibited"), "{refused}");
    Ok(())
}
