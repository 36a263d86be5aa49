//! An app's log lines from every host, as one stream of JSON lines.
//!
//! First the last `tail` lines of all hosts, ordered by time; with `follow` then what comes, ordered by
//! time within each host's page. Ends when the client goes or the router stops. Bounded: a slow client
//! slows the reading from hosts, and hosts drop and count what they cannot keep.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use marcato_api::{ApiResult, AppName, HostApi, HostState, LogCursor, LogLine, LogQuery, Millis, Role};
use marcato_client::HostClient;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::session::{Session, invalid};

/// Most lines of the past.
const MAX_TAIL: u32 = 10_000;
/// Lines per page of a host.
const PAGE: u32 = 1_000;
/// How long a host waits for lines before it answers an empty page.
const WAIT: Millis = Millis::secs(10);
/// How often we look for hosts that joined, and send an empty line so that a client that went is noticed.
const TICK: Duration = Duration::from_secs(10);
/// How long to leave a host alone that does not answer.
const RETRY: Duration = Duration::from_secs(2);
/// Pages that wait for the client.
const BUFFER: usize = 16;

/// `?follow=&tail=`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogParams {
    #[serde(default)]
    follow: bool,
    #[serde(default = "usual_tail")]
    tail: u32,
}

fn usual_tail() -> u32 {
    100
}

type Lines = mpsc::Sender<Result<Bytes, std::convert::Infallible>>;

impl Session {
    pub(super) async fn app_logs(&self, app: &AppName, params: LogParams) -> ApiResult<Body> {
        self.visible_app(app, Role::Viewer, "app.logs").await?;
        if params.tail > MAX_TAIL {
            return Err(invalid("tail", format!("{} is not within 0 to {MAX_TAIL}", params.tail)));
        }
        let (lines, stream) = mpsc::channel(BUFFER);
        let (api, app) = (self.api.clone(), app.clone());
        // Owned by the response: when its body is dropped the channel closes, which ends the task.
        tokio::spawn(async move {
            let shutdown = api.shutdown.clone();
            let gone = lines.clone();
            tokio::select! {
                () = send(api, app, params, lines) => {}
                () = gone.closed() => {}
                () = shutdown.cancelled() => {}
            }
        });
        Ok(Body::from_stream(ReceiverStream::new(stream)))
    }
}

/// Hosts worth asking.
async fn hosts(api: &Api) -> Vec<HostClient> {
    let observed = api.observed.snapshot();
    let found = match api.state.hosts().await {
        Ok(found) => found,
        Err(e) => {
            tracing::warn!(error = %e, "hosts cannot be read for logs");
            return Vec::new();
        }
    };
    let silent = |id| observed.hosts.get(id).is_some_and(|h| h.state == HostState::Suspected);
    found.iter().filter(|h| !silent(&h.id)).map(|h| api.hosts.client(h)).collect()
}

async fn send(api: Api, app: AppName, params: LogParams, lines: Lines) {
    let clients = hosts(&api).await;
    let past = futures::stream::iter(clients).map(|client| past(client, app.clone(), params.tail as usize));
    let past: Vec<_> = past.buffer_unordered(16).collect().await;
    let mut all: Vec<LogLine> = Vec::new();
    let mut followed = Vec::new();
    for (client, cursor, found) in past {
        all.extend(found);
        followed.push((client, cursor));
    }
    all.sort_by_key(|l| l.at);
    let skip = all.len().saturating_sub(params.tail as usize);
    if !pass(&lines, &all[skip..]).await || !params.follow {
        return;
    }
    let mut known: BTreeSet<_> = followed.iter().map(|(c, _)| c.host().clone()).collect();
    let mut tasks = JoinSet::new();
    for (client, cursor) in followed {
        tasks.spawn(follow(client, app.clone(), cursor, lines.clone()));
    }
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        if lines.send(Ok(Bytes::from_static(b"\n"))).await.is_err() {
            return;
        }
        for client in hosts(&api).await {
            if known.insert(client.host().clone()) {
                tasks.spawn(follow(client, app.clone(), LogCursor::default(), lines.clone()));
            }
        }
    }
}

/// The last lines of one host, and where they end.
async fn past(client: HostClient, app: AppName, tail: usize) -> (HostClient, LogCursor, Vec<LogLine>) {
    let mut kept = std::collections::VecDeque::new();
    let mut after = LogCursor::default();
    loop {
        let query = LogQuery { app: app.clone(), after, wait_ms: Millis(0), limit: PAGE };
        let page = match client.logs(query).await {
            Ok(page) => page,
            Err(e) => {
                tracing::debug!(host = %client.host(), error = %e, "its log cannot be read");
                break;
            }
        };
        let full = page.lines.len() >= PAGE as usize;
        after = page.next;
        kept.extend(page.lines);
        while kept.len() > tail {
            kept.pop_front();
        }
        if !full {
            break;
        }
    }
    (client, after, kept.into())
}

async fn follow(client: HostClient, app: AppName, mut after: LogCursor, lines: Lines) {
    loop {
        let query = LogQuery { app: app.clone(), after, wait_ms: WAIT, limit: PAGE };
        match client.logs(query).await {
            Ok(page) => {
                after = page.next;
                if !pass(&lines, &page.lines).await {
                    return;
                }
            }
            Err(e) => {
                tracing::debug!(host = %client.host(), error = %e, "its log cannot be followed now");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// False when the client is gone.
async fn pass(lines: &Lines, found: &[LogLine]) -> bool {
    for part in found.chunks(64) {
        let mut bytes = Vec::new();
        for line in part {
            if serde_json::to_writer(&mut bytes, line).is_ok() {
                bytes.push(b'\n');
            }
        }
        if lines.send(Ok(bytes.into())).await.is_err() {
            return false;
        }
    }
    true
}
