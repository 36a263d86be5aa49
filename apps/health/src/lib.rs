//! The health application: patients, doctors and staff with their secure keys and access rights, over
//! the platform's access service. Server-rendered, usable without scripts; a JSON API beside the pages.
//!
//! Owns: pages, log-in, and who may see what. Does not own: the register itself (keys, rights, history
//! are the service's, bound as `register`); accounts and sessions lie in the key-value store `state`.
//! Flow: request, its last step (hostd -> runtime -> here -> services).

// Natively only the unit tests of the pure parts run: the server loop is what calls the rest.
#![cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "the server loop exists only in a sandbox"))]

mod api;
mod auth;
mod demo;
mod forms;
mod http;
mod pages;
mod problem;
mod route;
#[cfg(target_arch = "wasm32")]
mod server;
mod session;
mod state;

use marcato_guest::access::Register;
use marcato_guest::keyvalue::Bucket;

/// What a request is handled with.
pub(crate) struct App {
    pub(crate) register: Register,
    pub(crate) state: Bucket,
    /// The time of this request.
    pub(crate) now_ms: u64,
}
