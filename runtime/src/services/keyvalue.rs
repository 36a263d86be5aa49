//! `wasi:keyvalue`: buckets that are bound to the app.

use std::sync::Arc;

use marcato_api::{KeyValueError, KeyValueRequest, KeyValueResponse};
use wasmtime::component::Resource;

use super::bindings::wasi::keyvalue::store::{Error, Host, HostBucket, KeyResponse};
use super::bindings::wasi::keyvalue::{atomics, batch};
use super::{KeyValueService, View};

/// An open bucket.
#[allow(unreachable_pub, reason = "generated code names it as public")]
pub struct Bucket(Arc<dyn KeyValueService>);

type Answer<T> = wasmtime::Result<Result<T, Error>>;

fn error(e: KeyValueError) -> Error {
    match e {
        KeyValueError::NoSuchStore => Error::NoSuchStore,
        other => Error::Other(other.to_string()),
    }
}

/// What a request holds of the host's memory.
fn size(request: &KeyValueRequest) -> u64 {
    let bytes: usize = match request {
        KeyValueRequest::Set { key, value } => key.len() + value.len(),
        KeyValueRequest::SetMany { entries } => entries.iter().map(|(key, value)| key.len() + value.len()).sum(),
        KeyValueRequest::GetMany { keys } | KeyValueRequest::DeleteMany { keys } => keys.iter().map(String::len).sum(),
        KeyValueRequest::Get { key }
        | KeyValueRequest::Delete { key }
        | KeyValueRequest::Exists { key }
        | KeyValueRequest::Increment { key, .. } => key.len(),
        KeyValueRequest::ListKeys { .. } => 0,
    };
    bytes as u64 + 256
}

/// An owner that answers another question is a defect of the platform, not of the guest.
fn unexpected() -> Error {
    Error::Other("the store gave an answer to another question".into())
}

impl View<'_> {
    async fn keyvalue(&mut self, bucket: &Resource<Bucket>, request: KeyValueRequest) -> Answer<KeyValueResponse> {
        let service = Arc::clone(&self.table.get(bucket)?.0);
        // Held while the store works: tasks of one sandbox may wait for many stores at once.
        let _charge = match self.account.charge(size(&request)) {
            Ok(charge) => charge,
            Err(over) => return Ok(Err(Error::Other(over.to_string()))),
        };
        Ok(service.call(request).await.map_err(error))
    }

    async fn keyvalue_done(&mut self, bucket: &Resource<Bucket>, request: KeyValueRequest) -> Answer<()> {
        Ok(match self.keyvalue(bucket, request).await? {
            Ok(KeyValueResponse::Done) => Ok(()),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }
}

impl Host for View<'_> {
    async fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        match self.services.keyvalue.get(&identifier) {
            Some(service) => Ok(Ok(self.table.push(Bucket(Arc::clone(service)))?)),
            None => Ok(Err(Error::NoSuchStore)),
        }
    }
}

impl HostBucket for View<'_> {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        Ok(match self.keyvalue(&bucket, KeyValueRequest::Get { key }).await? {
            Ok(KeyValueResponse::Value(value)) => Ok(value),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }

    async fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        self.keyvalue_done(&bucket, KeyValueRequest::Set { key, value }).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        self.keyvalue_done(&bucket, KeyValueRequest::Delete { key }).await
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        Ok(match self.keyvalue(&bucket, KeyValueRequest::Exists { key }).await? {
            Ok(KeyValueResponse::Exists(exists)) => Ok(exists),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }

    async fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<KeyResponse> {
        Ok(match self.keyvalue(&bucket, KeyValueRequest::ListKeys { after: cursor }).await? {
            Ok(KeyValueResponse::Keys { keys, next }) => Ok(KeyResponse { keys, cursor: next }),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for View<'_> {
    async fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        Ok(match self.keyvalue(&bucket, KeyValueRequest::Increment { key, delta }).await? {
            Ok(KeyValueResponse::Number(number)) => Ok(number),
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }
}

impl batch::Host for View<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        Ok(match self.keyvalue(&bucket, KeyValueRequest::GetMany { keys }).await? {
            Ok(KeyValueResponse::Values(values)) => {
                Ok(values.into_iter().map(|(key, value)| value.map(|v| (key, v))).collect())
            }
            Ok(_) => Err(unexpected()),
            Err(e) => Err(e),
        })
    }

    async fn set_many(&mut self, bucket: Resource<Bucket>, entries: Vec<(String, Vec<u8>)>) -> Answer<()> {
        self.keyvalue_done(&bucket, KeyValueRequest::SetMany { entries }).await
    }

    async fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        self.keyvalue_done(&bucket, KeyValueRequest::DeleteMany { keys }).await
    }
}
