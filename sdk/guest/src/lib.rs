//! The Rust SDK for guests of Marcato: what the platform offers beyond WASI's cli and http.
//!
//! Owns: typed bindings over `sdk/wit` and small conveniences. Does not own: HTTP, which guests take
//! from `wstd` or `wasip3`. A component imports only what it calls, so an app that uses one module
//! needs only that grant.
//!
//! ```no_run
//! use marcato_guest::{access, keyvalue};
//! let register = access::open("register").expect("bound in marcato.toml");
//! let state = keyvalue::open("state").expect("bound in marcato.toml");
//! # drop((register, state));
//! ```

#[allow(
    unsafe_code,
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::semicolon_if_nothing_returned,
    clippy::undocumented_unsafe_blocks,
    clippy::needless_pass_by_value,
    reason = "generated from sdk/wit; the calls into the host are unsafe by nature"
)]
mod bindings {
    wit_bindgen::generate!({
        path: "../wit",
        world: "services",
        generate_all,
    });
}

pub mod access;
pub mod config;
pub mod keyvalue;
pub mod logging;
