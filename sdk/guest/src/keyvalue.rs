//! `wasi:keyvalue`: values by key, durable before a call returns; batches are all or none here.

pub use crate::bindings::wasi::keyvalue::atomics::increment;
pub use crate::bindings::wasi::keyvalue::batch::{delete_many, get_many, set_many};
pub use crate::bindings::wasi::keyvalue::store::{Bucket, Error, KeyResponse, open};

/// Every key that starts with `prefix`. Reads all keys of the store, 1,000 at a time.
pub fn keys_with_prefix(bucket: &Bucket, prefix: &str) -> Result<Vec<String>, Error> {
    let mut found = Vec::new();
    let mut cursor = None;
    loop {
        let page = bucket.list_keys(cursor)?;
        found.extend(page.keys.into_iter().filter(|k| k.starts_with(prefix)));
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(found),
        }
    }
}
