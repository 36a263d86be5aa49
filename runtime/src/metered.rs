//! Counts what a guest's resources cost the host, before the host spends it.
//!
//! wasmtime bounds single things (one `fields`, one call, the number of handles) and not their sum: thousands of
//! handles, each with its headers, its URL and its buffered body. So the calls that make the host hold more are linked
//! again here, each asking the accountant (`budget`) before it calls wasmtime's own implementation; and every so many
//! calls the table of resources is counted over, so that what was dropped or moved is right again. Request flow.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, LinkerInstance, Resource, ResourceTable};
use wasmtime_wasi::p2::{DynOutputStream, OutputStream, Pollable, StreamError, StreamResult};
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p2::body::HostOutgoingBody;
use wasmtime_wasi_http::p2::types::{
    HostIncomingRequest, HostIncomingResponse, HostOutgoingRequest, HostOutgoingResponse,
};
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{FieldMap, WasiHttpView as _, p3 as http3};

use crate::budget::{OverBudget, SANDBOX_COST, SandboxAccount, charged};
use crate::sandbox::{HANDLES, Host};

/// What a handle costs the host: its entry, its box, and a small thing in it.
const HANDLE_COST: u64 = 512;

/// What a header costs beside its text.
const HEADER_COST: usize = 96;

/// Calls between two counts. A call makes two handles at most, so a count is never off by more than
/// `2 * CALLS_PER_COUNT * HANDLE_COST`.
const CALLS_PER_COUNT: u32 = 64;

/// Handles that there may be more of at a count than at the one before, and some that no call of the guest made.
const NEW_KEYS: u32 = 2 * CALLS_PER_COUNT + 64;

/// What of a sandbox's host memory is counted here.
pub(crate) struct Ledger {
    account: Arc<SandboxAccount>,
    /// What the table of resources held when it was counted last, and was promised since.
    counted: u64,
    /// What cannot be counted over: trailers on their way. Given back with the request.
    sticky: u64,
    /// Calls since the last count.
    calls: u32,
    /// No key of the table is above this.
    keys: u32,
    /// Handles that the guest may hold.
    handles: usize,
}

impl Ledger {
    /// Charges what a sandbox costs by itself.
    pub(crate) fn open(account: Arc<SandboxAccount>, handles: usize) -> Result<Self, OverBudget> {
        account.take(SANDBOX_COST)?;
        Ok(Self { account, counted: 0, sticky: 0, calls: 0, keys: NEW_KEYS, handles })
    }

    pub(crate) fn account(&self) -> &Arc<SandboxAccount> {
        &self.account
    }

    /// Charges what is held until the next request begins or the sandbox ends.
    pub(crate) fn hold(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.account.take(bytes)?;
        self.sticky += bytes;
        Ok(())
    }

    /// Another request begins in this sandbox: what the one before sent is gone.
    pub(crate) fn begin(&mut self, table: &mut ResourceTable) {
        self.account.release(std::mem::take(&mut self.sticky));
        if table.max_capacity() == 0 {
            self.count(table);
        }
    }

    /// One call from guest to host; counts the table over when it is time.
    pub(crate) fn call(&mut self, table: &mut ResourceTable) {
        self.calls += 1;
        if self.calls >= CALLS_PER_COUNT {
            self.count(table);
        }
    }

    /// Counts what the table really holds. A guest that holds too much gets no more handles.
    fn count(&mut self, table: &mut ResourceTable) {
        self.calls = 0;
        let (held, live) = held(table, self.keys);
        // A table has no list of its entries, but it makes a new key only when all below it are in use.
        self.keys = self.keys.max(live + NEW_KEYS).min(HANDLES as u32);
        if held >= self.counted {
            self.account.force(held - self.counted);
        } else {
            self.account.release(self.counted - held);
        }
        self.counted = held;
        // Handles are counted after they were made. Whoever is refused something else at its limit needs a few to answer.
        let over = self.account.over(2 * u64::from(CALLS_PER_COUNT) * HANDLE_COST);
        if let Some(limit) = over
            && table.max_capacity() != 0
        {
            self.account.refused(limit);
        }
        table.set_max_capacity(if over.is_some() { 0 } else { self.handles });
    }

    /// Charges what a call is about to add to the table.
    fn reserve(&mut self, table: &mut ResourceTable, bytes: u64) -> Result<(), OverBudget> {
        // A count costs more than a charge: it is for those who are near their limit.
        if !self.account.has_room(bytes) {
            self.count(table);
        }
        self.account.take(bytes)?;
        self.counted += bytes;
        Ok(())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.account.release(SANDBOX_COST + self.counted + self.sticky);
    }
}

impl Host {
    fn reserve(&mut self, bytes: u64) -> Result<(), OverBudget> {
        self.ledger.reserve(&mut self.table, bytes)
    }
}

/// What the resources of a table cost the host, and how many there are.
fn held(table: &mut ResourceTable, keys: u32) -> (u64, u32) {
    let costs = (0..keys).filter_map(|key| Some(HANDLE_COST + cost(table.get_any_mut(key).ok()?)));
    costs.fold((0, 0), |(bytes, live), cost| (bytes + cost, live + 1))
}

fn cost(resource: &dyn std::any::Any) -> u64 {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let bytes = if let Some(fields) = resource.downcast_ref::<FieldMap>() {
        size(fields)
    } else if let Some(request) = resource.downcast_ref::<HostOutgoingRequest>() {
        let method = if let p2::Method::Other(name) = &request.method { name.len() } else { 0 };
        let scheme = if let Some(p2::Scheme::Other(name)) = &request.scheme { name.len() } else { 0 };
        size(&request.headers) + text(&request.path_with_query) + text(&request.authority) + method + scheme
    } else if let Some(response) = resource.downcast_ref::<HostOutgoingResponse>() {
        size(&response.headers)
    } else if let Some(response) = resource.downcast_ref::<HostIncomingResponse>() {
        size(&response.headers)
    } else if let Some(request) = resource.downcast_ref::<http3::Request>() {
        let path = request.path_with_query.as_ref().map_or(0, |p| p.as_str().len());
        let authority = request.authority.as_ref().map_or(0, |a| a.as_str().len());
        size(&request.headers) + path + authority + request.method.as_str().len()
    } else if let Some(response) = resource.downcast_ref::<http3::Response>() {
        size(&response.headers)
    } else if resource.is::<HostIncomingRequest>() {
        // As long as the edge lets a head be; one per request.
        16 << 10
    } else {
        0
    };
    bytes as u64
}

fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| header(name.as_str(), value.as_bytes())).sum()
}

fn header(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + HEADER_COST
}

fn list(entries: &[(String, Vec<u8>)]) -> u64 {
    entries.iter().map(|(name, value)| header(name, value)).sum::<usize>() as u64
}

fn values(name: &str, values: &[Vec<u8>]) -> u64 {
    values.iter().map(|value| header(name, value)).sum::<usize>() as u64
}

/// Links again what makes the host hold more, on top of what `wasmtime-wasi-http` linked.
pub(crate) fn link_p2(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(P2_TYPES)?;
    p2_fields(&mut types)?;
    p2_requests(&mut types)?;
    p2_bodies(&mut types)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The same for WASI 0.3.
pub(crate) fn link_p3(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(P3_TYPES)?;
    p3_fields(&mut types)?;
    p3_requests(&mut types)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// As `wasmtime-wasi-http` names them: another version would link beside it and count nothing, which a test sees.
const P2_TYPES: &str = "wasi:http/types@0.2.12";
const P3_TYPES: &str = "wasi:http/types@0.3.0";

type Cx<'a> = StoreContextMut<'a, Host>;
type P2Headers = Result<(), p2::HeaderError>;
type P3Headers = Result<(), p3::HeaderError>;

/// An error of wasmtime's implementation as the interface's own; else it traps.
fn p2_headers<T>(
    result: Result<T, wasmtime_wasi_http::p2::HeaderError>,
) -> wasmtime::Result<(Result<T, p2::HeaderError>,)> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(e) => Err(e.downcast()?),
    },))
}

/// WASI 0.2 has no error for headers that are too large, so the guest traps, as it does over the size of one `fields`.
fn p2_fields(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    use p2::HostFields as Fields;
    types.func_wrap("[static]fields.from-list", |mut cx: Cx<'_>, (entries,): (Vec<(String, Vec<u8>)>,)| {
        let host = cx.data_mut();
        host.reserve(list(&entries))?;
        p2_headers(Fields::from_list(&mut host.http(), entries))
    })?;
    types.func_wrap(
        "[method]fields.set",
        |mut cx: Cx<'_>, (fields, name, value): (Resource<FieldMap>, String, Vec<Vec<u8>>)| {
            let host = cx.data_mut();
            host.reserve(values(&name, &value))?;
            p2_headers::<()>(Fields::set(&mut host.http(), fields, name, value))
        },
    )?;
    types.func_wrap(
        "[method]fields.append",
        |mut cx: Cx<'_>,
         (fields, name, value): (Resource<FieldMap>, String, Vec<u8>)|
         -> wasmtime::Result<(P2Headers,)> {
            let host = cx.data_mut();
            host.reserve(header(&name, &value) as u64)?;
            p2_headers(Fields::append(&mut host.http(), fields, name, value))
        },
    )?;
    types.func_wrap("[method]fields.clone", |mut cx: Cx<'_>, (fields,): (Resource<FieldMap>,)| {
        let host = cx.data_mut();
        let bytes = size(host.table.get(&fields)?);
        host.reserve(bytes as u64)?;
        Ok((Fields::clone(&mut host.http(), fields)?,))
    })
}

/// What a guest may write into a request before it sends it has no bound of its own.
fn p2_requests(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    use p2::HostOutgoingRequest as Requests;
    type Request = Resource<HostOutgoingRequest>;
    type Text = Option<String>;
    type Done = wasmtime::Result<(Result<(), ()>,)>;

    fn set(
        mut cx: Cx<'_>,
        bytes: usize,
        set: impl FnOnce(&mut wasmtime_wasi_http::WasiHttpCtxView<'_>) -> wasmtime::Result<Result<(), ()>>,
    ) -> Done {
        let host = cx.data_mut();
        if host.reserve(bytes as u64).is_err() {
            return Ok((Err(()),));
        }
        Ok((set(&mut host.http())?,))
    }

    types.func_wrap(
        "[method]outgoing-request.set-method",
        |cx: Cx<'_>, (request, method): (Request, p2::Method)| {
            let bytes = if let p2::Method::Other(name) = &method { name.len() } else { 0 };
            set(cx, bytes, |http| Requests::set_method(http, request, method))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-path-with-query",
        |cx: Cx<'_>, (request, path): (Request, Text)| {
            set(cx, path.as_ref().map_or(0, String::len), |http| Requests::set_path_with_query(http, request, path))
        },
    )?;
    types.func_wrap(
        "[method]outgoing-request.set-scheme",
        |cx: Cx<'_>, (request, scheme): (Request, Option<p2::Scheme>)| {
            let bytes = if let Some(p2::Scheme::Other(name)) = &scheme { name.len() } else { 0 };
            set(cx, bytes, |http| Requests::set_scheme(http, request, scheme))
        },
    )?;
    types.func_wrap("[method]outgoing-request.set-authority", |cx: Cx<'_>, (request, authority): (Request, Text)| {
        set(cx, authority.as_ref().map_or(0, String::len), |http| Requests::set_authority(http, request, authority))
    })
}

fn p2_bodies(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    use p2::HostOutgoingBody as Bodies;
    types.func_wrap("[method]outgoing-body.write", |mut cx: Cx<'_>, (body,): (Resource<HostOutgoingBody>,)| {
        let host = cx.data_mut();
        let stream = Bodies::write(&mut host.http(), body)?;
        if let Ok(stream) = &stream {
            let account = Arc::clone(host.ledger.account());
            let slot = host.table.get_mut(stream)?;
            let inner = std::mem::replace(slot, Box::new(Nothing));
            *slot = Box::new(ChargedStream { inner, account });
        }
        Ok((stream,))
    })?;
    types.func_wrap(
        "[static]outgoing-body.finish",
        |mut cx: Cx<'_>, (body, trailers): (Resource<HostOutgoingBody>, Option<Resource<FieldMap>>)| {
            let host = cx.data_mut();
            if let Some(trailers) = &trailers {
                let bytes = size(host.table.get(trailers)?) as u64;
                host.ledger.hold(bytes)?;
            }
            Ok((match Bodies::finish(&mut host.http(), body, trailers) {
                Ok(()) => Ok(()),
                Err(e) => Err(e.downcast()?),
            },))
        },
    )
}

fn p3_headers<T>(
    result: Result<T, wasmtime_wasi::TrappableError<p3::HeaderError>>,
) -> wasmtime::Result<(Result<T, p3::HeaderError>,)> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(e) => Err(e.downcast()?),
    },))
}

fn p3_fields(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    use p3::HostFields as Fields;
    types.func_wrap("[static]fields.from-list", |mut cx: Cx<'_>, (entries,): (Vec<(String, Vec<u8>)>,)| {
        let host = cx.data_mut();
        if host.reserve(list(&entries)).is_err() {
            return Ok((Err(p3::HeaderError::SizeExceeded),));
        }
        p3_headers(Fields::from_list(&mut host.http(), entries))
    })?;
    types.func_wrap(
        "[method]fields.set",
        |mut cx: Cx<'_>, (fields, name, value): (Resource<FieldMap>, String, Vec<Vec<u8>>)| {
            let host = cx.data_mut();
            if host.reserve(values(&name, &value)).is_err() {
                return Ok((Err(p3::HeaderError::SizeExceeded),));
            }
            p3_headers::<()>(Fields::set(&mut host.http(), fields, name, value))
        },
    )?;
    types.func_wrap(
        "[method]fields.append",
        |mut cx: Cx<'_>,
         (fields, name, value): (Resource<FieldMap>, String, Vec<u8>)|
         -> wasmtime::Result<(P3Headers,)> {
            let host = cx.data_mut();
            if host.reserve(header(&name, &value) as u64).is_err() {
                return Ok((Err(p3::HeaderError::SizeExceeded),));
            }
            p3_headers(Fields::append(&mut host.http(), fields, name, value))
        },
    )?;
    // Has no error of its own: it traps.
    types.func_wrap("[method]fields.clone", |mut cx: Cx<'_>, (fields,): (Resource<FieldMap>,)| {
        let host = cx.data_mut();
        let bytes = size(host.table.get(&fields)?);
        host.reserve(bytes as u64)?;
        Ok((Fields::clone(&mut host.http(), fields)?,))
    })
}

fn p3_requests(types: &mut LinkerInstance<'_, Host>) -> wasmtime::Result<()> {
    use p3::HostRequest as Requests;
    type Request = Resource<http3::Request>;
    type Text = Option<String>;
    type Done = wasmtime::Result<(Result<(), ()>,)>;

    fn set(
        mut cx: Cx<'_>,
        bytes: usize,
        set: impl FnOnce(&mut wasmtime_wasi_http::WasiHttpCtxView<'_>) -> wasmtime::Result<Result<(), ()>>,
    ) -> Done {
        let host = cx.data_mut();
        if host.reserve(bytes as u64).is_err() {
            return Ok((Err(()),));
        }
        Ok((set(&mut host.http())?,))
    }

    types.func_wrap("[method]request.set-method", |cx: Cx<'_>, (request, method): (Request, p3::Method)| {
        let bytes = if let p3::Method::Other(name) = &method { name.len() } else { 0 };
        set(cx, bytes, |http| Requests::set_method(http, request, method))
    })?;
    types.func_wrap("[method]request.set-path-with-query", |cx: Cx<'_>, (request, path): (Request, Text)| {
        set(cx, path.as_ref().map_or(0, String::len), |http| Requests::set_path_with_query(http, request, path))
    })?;
    types.func_wrap("[method]request.set-scheme", |cx: Cx<'_>, (request, scheme): (Request, Option<p3::Scheme>)| {
        let bytes = if let Some(p3::Scheme::Other(name)) = &scheme { name.len() } else { 0 };
        set(cx, bytes, |http| Requests::set_scheme(http, request, scheme))
    })?;
    types.func_wrap("[method]request.set-authority", |cx: Cx<'_>, (request, authority): (Request, Text)| {
        set(cx, authority.as_ref().map_or(0, String::len), |http| Requests::set_authority(http, request, authority))
    })
}

/// The stream of an outgoing body: what is written is charged until it left the host.
struct ChargedStream {
    inner: DynOutputStream,
    account: Arc<SandboxAccount>,
}

impl OutputStream for ChargedStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let charge = self.account.charge(bytes.len() as u64).map_err(|e| StreamError::LastOperationFailed(e.into()))?;
        self.inner.write(charged(bytes, charge))
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.inner.check_write()
    }
}

impl Pollable for ChargedStream {
    // By hand what `async_trait` would write.
    fn ready<'a, 'b>(&'a mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        self.inner.ready()
    }
}

/// Stands in a slot while what belongs there is wrapped.
struct Nothing;

impl OutputStream for Nothing {
    fn write(&mut self, _: Bytes) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Err(StreamError::Closed)
    }
}

impl Pollable for Nothing {
    fn ready<'a, 'b>(&'a mut self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(std::future::ready(()))
    }
}
