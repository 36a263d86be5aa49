//! WASI commands as web apps: one process per request, after CGI/1.1 (RFC 3875).
//!
//! Owns: what a command is told (`environment`), its standard input and output (`pipe`), how its answer begins
//! (`head`), and local redirects. Does not own: admission, limits and the way of bodies (`invoke`, `body`), nor how a
//! WASI 0.1 module becomes a component (`module`). Flow: `invoke::work` -> here -> the guest's `wasi:cli/run`.

mod environment;
mod head;
mod pipe;

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, StatusCode, request};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Empty, Full};
use wasmtime::component::{Component, InstancePre};
use wasmtime::{Engine, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::{p2, p3};
use wasmtime_wasi_http::WasiBody;

use crate::instance::Inner;
use crate::invoke::{self, AnswerSender, Failure};
use crate::limits::CpuMeter;
use crate::logs::SandboxLog;
use crate::sandbox::{Host, Proxy};

use self::pipe::ROOM;
pub(crate) use self::pipe::{Ending, Stdin, Stdout};

/// A body of unknown length is read whole up to this, for CGI announces a length (section 4.1.2); a longer one gets 411.
const UNSIZED_BODY: usize = 1 << 20;

/// Local redirects (section 6.2.2) of one request.
const REDIRECTS: u32 = 8;

/// A component that exports `wasi:cli/run`, linked.
pub(crate) enum CommandPre {
    P2(p2::bindings::CommandPre<Host>),
    P3(p3::bindings::CommandPre<Host>),
}

/// A command, instantiated.
pub(crate) enum Command {
    P2(p2::bindings::Command),
    P3(p3::bindings::Command),
}

impl CommandPre {
    /// The command of a component, when it is one.
    pub(crate) fn find(component: &Component, pre: InstancePre<Host>) -> Option<wasmtime::Result<Self>> {
        let engine = pre.engine();
        let exports = |prefix: &str| component.component_type().exports(engine).any(|(n, _)| n.starts_with(prefix));
        if exports("wasi:cli/run@0.3.") {
            return Some(p3::bindings::CommandPre::new(pre).map(Self::P3));
        }
        if exports("wasi:cli/run@0.2.") {
            return Some(p2::bindings::CommandPre::new(pre).map(Self::P2));
        }
        None
    }

    pub(crate) fn engine(&self) -> &Engine {
        match self {
            Self::P2(pre) => pre.engine(),
            Self::P3(pre) => pre.engine(),
        }
    }

    pub(crate) async fn instantiate(&self, store: &mut Store<Host>) -> wasmtime::Result<Command> {
        Ok(match self {
            Self::P2(pre) => Command::P2(pre.instantiate_async(store).await?),
            Self::P3(pre) => Command::P3(pre.instantiate_async(store).await?),
        })
    }
}

impl Command {
    /// Runs it to its end. Errors: a trap, or the status that it ended with.
    async fn run(&self, store: &mut Store<Host>) -> wasmtime::Result<()> {
        let ended = match self {
            Self::P2(command) => command.wasi_cli_run().call_run(&mut *store).await,
            Self::P3(command) => store
                .run_concurrent(async |accessor| {
                    let ended = command.wasi_cli_run().call_run(accessor).await?;
                    // What it wrote may still be on its way.
                    std::future::poll_fn(|cx| accessor.poll_no_interesting_tasks(cx)).await;
                    wasmtime::Result::Ok(ended)
                })
                .await
                .and_then(|ended| ended),
        };
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err(I32Exit(1).into()),
            Err(e) if matches!(e.downcast_ref(), Some(I32Exit(0))) => Ok(()),
            Err(e) => Err(e),
        }
    }
}

/// What one process of a command is made with.
pub(crate) struct Stdio {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Stdout,
    /// What the host holds of input and output.
    pub(crate) held: u64,
}

impl Stdio {
    /// Gives it to the process. No argument but the program's name: a query that became arguments (section 4.4) has
    /// been the hole of many a CGI program.
    pub(crate) fn apply(self, wasi: &mut WasiCtxBuilder) {
        wasi.envs(&self.env).stdin(self.stdin).stdout(self.stdout).arg("/");
    }
}

/// Everything that a command does for one request: a process for it, and one more for each local redirect.
pub(crate) async fn work(
    inner: &Arc<Inner>,
    meter: &Arc<CpuMeter>,
    log: &Arc<SandboxLog>,
    request: http::Request<WasiBody>,
    answer: AnswerSender,
) -> Result<(), Failure> {
    let (mut parts, body) = request.into_parts();
    let (length, held, mut body) = match sized(&parts, body).await {
        Ok(sized) => sized,
        Err(status) => return refuse(answer, status),
    };
    let mut length = Some(length).filter(|n| *n > 0);
    let mut held = held + 2 * ROOM as u64;
    let mut answer = answer;
    for _ in 0..=REDIRECTS {
        let Some(env) = environment::of(&inner.env, &parts, length) else {
            return refuse(answer, StatusCode::BAD_REQUEST);
        };
        let stdout = Stdout::new(answer);
        let stdio =
            Stdio { env, stdin: Stdin::new(std::mem::replace(&mut body, empty())), stdout: stdout.clone(), held };
        match process(inner, meter, log, stdio, &stdout).await? {
            Ending::Answered => return Ok(()),
            Ending::Failed(why) => return Err(Failure::guest(why)),
            Ending::Redirected(to, back) => {
                answer = back;
                length = None;
                held = 2 * ROOM as u64;
                redirect(&mut parts, to);
            }
        }
    }
    Err(Failure::guest(format!("the command redirected more than {REDIRECTS} times")))
}

/// One process, from its making to its end.
async fn process(
    inner: &Arc<Inner>,
    meter: &Arc<CpuMeter>,
    log: &Arc<SandboxLog>,
    stdio: Stdio,
    stdout: &Stdout,
) -> Result<Ending, Failure> {
    let mut sandbox = invoke::new_sandbox(inner, meter, log, Some(stdio)).await?;
    sandbox.grant(&inner.config.limits);
    let Proxy::Command(command) = &sandbox.proxy else {
        return Err(Failure::guest("this component is no command".into()));
    };
    let result = command.run(&mut sandbox.store).await;
    log.flush();
    let fired = sandbox.store.data_mut().limiter.fired.take();
    drop(sandbox);
    match result {
        Ok(()) => {
            invoke::note_growth(inner, log, fired);
            Ok(stdout.end())
        }
        Err(e) => Err(invoke::explain(inner, meter, fired, &e)),
    }
}

/// The request is answered without the command.
fn refuse(answer: AnswerSender, status: StatusCode) -> Result<(), Failure> {
    let text = format!("{status}\n");
    let mut response = http::Response::new(Full::new(Bytes::from(text)).map_err(|e| match e {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    // The client may be gone.
    let _ = answer.send(Ok(response));
    Ok(())
}

fn empty() -> WasiBody {
    Empty::new().map_err(|e| match e {}).boxed_unsync()
}

/// The body, its length, and how much of it the host holds. Errors: the status to answer with.
async fn sized(parts: &request::Parts, mut body: WasiBody) -> Result<(u64, u64, WasiBody), StatusCode> {
    if let Some(length) = body.size_hint().exact().or_else(|| invoke::content_length(&parts.headers)) {
        return Ok((length, 0, body));
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // A body over its limit ends the request before this answer counts.
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        let Ok(data) = frame.into_data() else { continue };
        if whole.len() + data.len() > UNSIZED_BODY {
            return Err(StatusCode::LENGTH_REQUIRED);
        }
        whole.extend_from_slice(&data);
    }
    let whole = whole.freeze();
    let length = whole.len() as u64;
    Ok((length, length, Full::new(whole).map_err(|e| match e {}).boxed_unsync()))
}

/// The request as section 6.2.2 has it: as if the client had asked for that path.
fn redirect(parts: &mut request::Parts, to: http::Uri) {
    if parts.method != Method::HEAD {
        parts.method = Method::GET;
    }
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(CONTENT_TYPE);
    if let Some(authority) = parts.uri.authority()
        && !parts.headers.contains_key(HOST)
        && let Ok(value) = HeaderValue::from_str(authority.as_str())
    {
        parts.headers.insert(HOST, value);
    }
    parts.uri = to;
}
