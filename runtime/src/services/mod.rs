//! What a guest may use beyond WASI's cli and http: the traits that the host daemon implements, and
//! (in the files beside) the interfaces of `sdk/wit` on top of them. Owns no storage.

mod access;
mod config;
mod keyvalue;
mod logging;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use marcato_api::{
    AccessError, AccessRequest, AccessResponse, KeyValueError, KeyValueRequest, KeyValueResponse, LogStream,
};
use wasmtime::component::{HasData, Linker, ResourceTable};

use crate::budget::SandboxAccount;
use crate::logs::SandboxLog;
use crate::sandbox::Host;

/// Bindings of the world `services` in `sdk/wit`.
mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]

    wasmtime::component::bindgen!({
        path: "../sdk/wit",
        world: "marcato:platform/services",
        imports: { default: async | trappable },
        with: {
            "wasi:keyvalue/store.bucket": super::keyvalue::Bucket,
            "marcato:access/registry.register": super::access::Register,
        },
    });
}

/// What the service interfaces see of a sandbox.
pub(crate) struct View<'a> {
    account: &'a Arc<SandboxAccount>,
    table: &'a mut ResourceTable,
    services: &'a Services,
    log: &'a SandboxLog,
    env: &'a [(String, String)],
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

fn view(host: &mut Host) -> View<'_> {
    host.ledger.call(&mut host.table);
    let account = host.ledger.account();
    View { account, table: &mut host.table, services: &host.services, log: &host.log, env: &host.env }
}

/// Links the interfaces of `sdk/wit`.
pub(crate) fn link(linker: &mut Linker<Host>) -> wasmtime::Result<()> {
    bindings::wasi::config::store::add_to_linker::<Host, HasView>(linker, view)?;
    bindings::wasi::logging::logging::add_to_linker::<Host, HasView>(linker, view)?;
    bindings::wasi::keyvalue::store::add_to_linker::<Host, HasView>(linker, view)?;
    bindings::wasi::keyvalue::atomics::add_to_linker::<Host, HasView>(linker, view)?;
    bindings::wasi::keyvalue::batch::add_to_linker::<Host, HasView>(linker, view)?;
    bindings::marcato::access::registry::add_to_linker::<Host, HasView>(linker, view)
}

/// Services bound to an instance, by the name that the guest uses.
#[derive(Clone, Default)]
pub struct Services {
    /// Registers of `marcato:access`.
    pub access: BTreeMap<String, Arc<dyn AccessService>>,
    /// Buckets of `wasi:keyvalue`.
    pub keyvalue: BTreeMap<String, Arc<dyn KeyValueService>>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services")
            .field("access", &self.access.keys())
            .field("keyvalue", &self.keyvalue.keys())
            .finish()
    }
}

/// An access service, wherever its owner is.
pub trait AccessService: Send + Sync + 'static {
    /// Does one call; durable once it is answered.
    fn call(&self, request: AccessRequest) -> BoxFuture<'_, Result<AccessResponse, AccessError>>;
}

/// A key-value service, wherever its owner is.
pub trait KeyValueService: Send + Sync + 'static {
    /// Does one call; durable once it is answered.
    fn call(&self, request: KeyValueRequest) -> BoxFuture<'_, Result<KeyValueResponse, KeyValueError>>;
}

/// Where log lines go. Must never block: it is called on the request path.
pub trait LogSink: Send + Sync + 'static {
    /// One line, without its line end, at most 16 KiB. `request_id` is empty when it belongs to none.
    fn line(&self, request_id: &str, stream: LogStream, text: &str);
}
