//! `wasi:config/store`: the app's environment.

use super::View;
use super::bindings::wasi::config::store::{Error, Host};

impl Host for View<'_> {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, Error>> {
        Ok(Ok(self.env.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())))
    }

    async fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, Error>> {
        Ok(Ok(self.env.to_vec()))
    }
}
