//! What is known of a request from its header to its end: the access log line and the numbers.
//!
//! An [`Exchange`] travels with the request and then with the response's body; whatever way the
//! request ends, also when the client leaves, it is told when the exchange is dropped.

use std::sync::Arc;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Uri};
use marcato_api::headers::REQUEST_ID;
use marcato_balance::{AppEntry, Endpoint};
use tokio::time::Instant;

use crate::download::DownloadError;
use crate::edge::Shared;
use crate::forwarded::Peer;
use crate::owner::{Asked, DEBUG_NAME};

/// The request id's header.
pub(crate) const REQUEST_ID_NAME: HeaderName = HeaderName::from_static(REQUEST_ID);

/// A request in flight.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    started: Instant,
    method: Method,
    uri: Uri,
    pub(crate) host: String,
    pub(crate) id: HeaderValue,
    /// What the client called it.
    client_id: Option<HeaderValue>,
    app: Option<Arc<AppEntry>>,
    /// A debug token came along.
    pub(crate) asked: Option<Box<Asked>>,
    pub(crate) endpoint: Option<Arc<Endpoint>>,
    /// 0 until a response is there.
    pub(crate) status: u16,
    /// Bytes of the response's body.
    pub(crate) bytes: u64,
    /// Whether the whole response went on its way.
    pub(crate) complete: bool,
    /// Whether there is no room for it; it was counted in all the same.
    pub(crate) over_limit: bool,
}

impl Exchange {
    pub(crate) fn begin<B>(shared: &Arc<Shared>, peer: &Arc<Peer>, request: &Request<B>) -> Self {
        peer.conn.request_begins();
        shared.budget.deposit();
        let before = shared.metrics.in_flight.inc();
        let mut text = [0; ulid::ULID_LEN];
        let id = HeaderValue::from_str(ulid::Ulid::new().array_to_str(&mut text));
        Self {
            shared: Arc::clone(shared),
            peer: Arc::clone(peer),
            started: Instant::now(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: String::new(),
            // Base 32 is always a valid value.
            id: id.unwrap_or_else(|_| HeaderValue::from_static("")),
            client_id: request.headers().get(REQUEST_ID_NAME).cloned(),
            app: None,
            asked: None,
            endpoint: None,
            status: 0,
            bytes: 0,
            complete: false,
            over_limit: before >= shared.cfg.max_in_flight,
        }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Notes a response that ended before its end.
    pub(crate) fn broke(&self, error: &DownloadError) {
        let cause = std::error::Error::source(error).map(ToString::to_string);
        let instance = self.endpoint.as_ref().map(|e| e.instance.as_str());
        let request_id = self.id.to_str().unwrap_or_default();
        tracing::warn!(%error, cause, instance, request_id, "a response was cut");
    }

    /// Notes whose request it is. Asked again after each wait: a route may lead elsewhere by then.
    pub(crate) fn routed(&mut self, entry: &Arc<AppEntry>) {
        match &self.app {
            Some(before) if Arc::ptr_eq(&before.stats, &entry.stats) => {}
            before => {
                before.iter().for_each(|b| b.stats.leaves());
                entry.stats.begins();
            }
        }
        if let Some(asked) = &mut self.asked {
            asked.judge(entry);
        }
        self.app = Some(Arc::clone(entry));
    }

    /// The app that the request leads to.
    pub(crate) fn app(&self) -> Option<&AppEntry> {
        self.app.as_deref()
    }

    /// Whether the owner of the app that the request leads to asks.
    pub(crate) fn is_owner(&self) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.is_owner())
    }

    /// Puts the id on a response, and what a debug token was worth.
    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID_NAME, self.id.clone());
        if let Some(answer) = self.asked.as_ref().and_then(|asked| asked.answer()) {
            headers.insert(DEBUG_NAME, answer);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        self.shared.metrics.in_flight.dec();
        self.shared.metrics.finished(self.status, elapsed);
        if let Some(entry) = &self.app {
            entry.stats.ends(self.status, elapsed);
        }
        self.peer.conn.request_ends();
        let text = |value: &Option<HeaderValue>| {
            value.as_ref().and_then(|v| v.to_str().ok()).map(|v| v.chars().take(64).collect::<String>())
        };
        tracing::info!(
            target: "access",
            method = self.method.as_str(),
            host = self.host,
            // Without the query: it may hold secrets.
            path = self.uri.path(),
            status = self.status,
            bytes = self.bytes,
            ms = elapsed.as_secs_f64() * 1000.0,
            complete = self.complete,
            app = self.app.as_ref().map(|a| a.app.as_str()),
            instance = self.endpoint.as_ref().map(|e| e.instance.as_str()),
            request_id = self.id.to_str().unwrap_or_default(),
            client_request_id = text(&self.client_id),
        );
    }
}
