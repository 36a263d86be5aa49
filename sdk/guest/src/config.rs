//! `wasi:config`: the app's env as configuration values.

pub use crate::bindings::wasi::config::store::{Error, get, get_all};
