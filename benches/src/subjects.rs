//! What is measured: a subject is a way to reach the hello component; a peer is a server that is not ours.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use marcato_tests::{Pid, Target, children, end, tree, until};
use tempfile::TempDir;

/// A way to reach a component.
#[derive(Clone)]
pub struct Subject {
    /// As the report names it.
    pub name: String,
    /// Where to ask.
    pub target: Target,
    /// What to ask for.
    pub path: String,
    /// Headers of each request.
    pub headers: Vec<(String, String)>,
    /// The processes whose CPU and memory count.
    pub servers: Vec<Pid>,
}

/// A server that is not ours; ends when dropped.
pub struct Peer {
    child: Child,
    /// Where it answers.
    pub address: SocketAddr,
    _folder: Option<TempDir>,
}

/// Starts peers.
pub struct Peers {
    /// wasmtime's own command.
    pub wasmtime: PathBuf,
    /// nginx, where it is installed.
    pub nginx: Option<PathBuf>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        end(self.pid(), Duration::from_secs(3));
        drop(self.child.wait());
    }
}

impl Peer {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// It and its workers.
    pub fn processes(&self) -> Vec<Pid> {
        tree(self.pid())
    }

    /// As a subject.
    pub fn subject(&self, name: &str, also: &[Pid]) -> Subject {
        let mut servers = self.processes();
        servers.extend(also);
        Subject {
            name: name.to_owned(),
            target: Target::plain(self.address, "hello.localhost"),
            path: "/".into(),
            headers: Vec::new(),
            servers,
        }
    }
}

fn free_port() -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

async fn answering(child: Child, address: SocketAddr, folder: Option<TempDir>) -> Result<Peer> {
    let peer = Peer { child, address, _folder: folder };
    let target = Target::plain(address, "hello.localhost");
    until("a peer to answer", Duration::from_secs(60), || async {
        Ok((target.get("/").await?.status == 200).then_some(()))
    })
    .await?;
    Ok(peer)
}

impl Peers {
    /// `wasmtime serve` of a component with these flags before the file.
    pub async fn wasmtime(&self, component: &Path, flags: &[&str]) -> Result<Peer> {
        let address = free_port()?;
        let child = Command::new(&self.wasmtime)
            .args(["serve", "-Scli", "-Shttp", "--addr", &address.to_string()])
            .args(flags)
            .arg(component)
            // As our own servers have it: else whoever has RUST_BACKTRACE set measures the making of backtraces.
            .env("RUST_LIB_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.wasmtime.display()))?;
        answering(child, address, None).await
    }

    /// nginx as a proxy in front of `upstream`, keep-alive on both sides. `None` without nginx.
    pub async fn nginx(&self, upstream: SocketAddr) -> Result<Option<Peer>> {
        let Some(nginx) = &self.nginx else { return Ok(None) };
        let address = free_port()?;
        let folder = tempfile::Builder::new().prefix("marcato-bench-nginx-").tempdir()?;
        let at = folder.path().display();
        let config = format!(
            "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000;\n\
               client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
               upstream app {{ server {upstream}; keepalive 64; keepalive_requests 1000000; }}\n\
               server {{ listen {address}; location / {{ proxy_pass http://app; proxy_http_version 1.1;\n\
                 proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }} }}\n"
        );
        let file = folder.path().join("nginx.conf");
        std::fs::write(&file, config)?;
        let child = Command::new(nginx)
            .args(["-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nginx")?;
        let peer = answering(child, address, Some(folder)).await?;
        debug_assert!(!children(peer.pid()).is_empty());
        Ok(Some(peer))
    }
}
