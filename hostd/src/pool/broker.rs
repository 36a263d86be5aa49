//! What a worker may ask for, and nothing else: each answer is bounded by what the worker's own instances were given.
//!
//! A worker is believed nothing. It names one of its instances, and the daemon looks up in its own table what that
//! instance may do; a worker that guests have taken over gains what its own apps could do anyway.

use std::sync::{Arc, Mutex, PoisonError};

use marcato_api::{Digest, InstanceId};
use marcato_runtime::{DialError, Dialer, LoadError, NetworkDialer, outbound_allows};
use tokio::sync::oneshot;

use super::leases::Holder;
use super::worker::Worker;
use super::{Shared, process};
use crate::channel::{Ask, AskAnswer, Line, NoCode, Readiness, SocketSender};
use crate::error::chain;

/// Answers the asks of one worker process.
pub(super) struct Broker {
    worker: Arc<Worker>,
    with: Arc<Shared>,
    sockets: SocketSender,
    ready: Mutex<Option<oneshot::Sender<Readiness>>>,
    /// Whose lease it is.
    holder: Holder,
}

impl Broker {
    pub(super) fn new(
        worker: Arc<Worker>,
        with: Arc<Shared>,
        sockets: SocketSender,
        ready: oneshot::Sender<Readiness>,
        holder: Holder,
    ) -> Self {
        Self { worker, with, sockets, ready: Mutex::new(Some(ready)), holder }
    }

    pub(super) async fn answer(&self, ask: Ask) -> AskAnswer {
        match ask {
            Ask::Ready(readiness) => {
                let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
                match ready {
                    // Who waits may have given up.
                    Some(ready) => drop(ready.send(*readiness)),
                    None => return AskAnswer::Refused,
                }
                AskAnswer::Done
            }
            Ask::Code(digest) => AskAnswer::Code(self.code(&digest).await),
            Ask::Access { instance, binding, request } => {
                let service = self.worker.with_entry(&instance, |e| e.services.access.get(&binding).cloned());
                match service.flatten() {
                    Some(service) => AskAnswer::Access(service.call(request).await),
                    None => self.refused(&instance, "an access service"),
                }
            }
            Ask::KeyValue { instance, binding, request } => {
                let service = self.worker.with_entry(&instance, |e| e.services.keyvalue.get(&binding).cloned());
                match service.flatten() {
                    Some(service) => AskAnswer::KeyValue(service.call(request).await),
                    None => self.refused(&instance, "a key-value service"),
                }
            }
            Ask::Connect { instance, host, port, ticket } => {
                let allowed = self.worker.with_entry(&instance, |e| {
                    let order = &e.order;
                    let named = outbound_allows(&order.config.allowed_outbound_hosts, &host, port);
                    named.then_some(order.budget.allow_private_egress)
                });
                let Some(allow_private) = allowed.flatten() else {
                    return self.refused(&instance, "a connection");
                };
                // What a policy says of this app, else what the operator of the host said.
                let allow_private = allow_private.unwrap_or(self.with.settings.allow_private_egress);
                let dialer = NetworkDialer { allow_private };
                AskAnswer::Connected(self.connect(dialer, &instance, &host, port, ticket).await)
            }
            Ask::Holding(holding) => {
                self.with.lessor.hear(self.holder, &holding);
                AskAnswer::Done
            }
            Ask::Last(report) => {
                self.worker.take_last(*report);
                AskAnswer::Done
            }
            Ask::Lines(lines) => {
                self.lines(&lines);
                AskAnswer::Done
            }
        }
    }

    /// Asked for what the instance was never given: a race with its end, or a worker that is not itself any more.
    fn refused(&self, instance: &InstanceId, what: &str) -> AskAnswer {
        tracing::warn!(worker = self.worker.name(), %instance, what, "a worker asked for what its instance has not");
        AskAnswer::Refused
    }

    async fn code(&self, digest: &Digest) -> Result<String, NoCode> {
        if !self.worker.runs(digest) {
            return Err(NoCode::NotCompiled);
        }
        let unusable = |why: String| {
            tracing::error!(%digest, %why, "cached code cannot be used; compiling again");
            self.with.settings.wake_components.notify_one();
            NoCode::Unusable(why)
        };
        let verified = match self.with.settings.cache.verified(digest).await {
            Ok(path) => path,
            Err(LoadError::NotCompiled(_)) => return Err(NoCode::NotCompiled),
            Err(error) => return Err(unusable(chain(&error))),
        };
        let link = self.worker.code_file(digest);
        let linked = tokio::task::spawn_blocking({
            let (link, cache, digest) = (link.clone(), self.with.settings.cache.clone(), digest.clone());
            move || {
                // Before the code: code that is there has its files.
                cache.link_files(&digest, link.parent().unwrap_or(&link))?;
                process::link_code(&verified, &link)
            }
        });
        match linked.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(unusable(error.to_string())),
            Err(error) => return Err(unusable(error.to_string())),
        }
        Ok(link.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default())
    }

    async fn connect(
        &self,
        dialer: NetworkDialer,
        instance: &InstanceId,
        host: &str,
        port: u16,
        ticket: u64,
    ) -> Result<(), DialError> {
        let stream = dialer.connect(instance, host, port).await?;
        self.sockets.send(ticket, &stream).await.map_err(|e| DialError::connect(&e))
    }

    fn lines(&self, lines: &[Line]) {
        for line in lines {
            let sink = self.worker.with_entry(&line.instance, |e| Arc::clone(&e.logs));
            match sink {
                Some(sink) => sink.line(&line.request_id, line.stream, &line.text),
                None => tracing::debug!(instance = %line.instance, "a line of an instance that is gone"),
            }
        }
    }
}
