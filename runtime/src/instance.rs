//! An instance: one placement of a revision. It admits requests, bounded.

use std::sync::Arc;

use marcato_api::{InstanceCounters, ProblemKind};

use crate::body::{RequestBody, ResponseBody};
use crate::config::InstanceSetup;
use crate::error::InvokeError;

/// A running instance. Cheap to clone.
#[derive(Clone)]
pub struct Instance {
    pub(crate) inner: Arc<InstanceSetup>,
}

impl Instance {
    /// Runs one request. Dropping the future or the response's body ends the sandbox that serves it.
    pub async fn handle(
        &self,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, InvokeError> {
        drop(request);
        Err(InvokeError::not_started(ProblemKind::InstanceGone, self.inner.id.to_string()))
    }

    /// Requests that run now, those whose response still streams among them.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        0
    }

    /// Requests that wait for a place.
    #[must_use]
    pub fn queued(&self) -> u32 {
        0
    }

    /// Totals since the start.
    #[must_use]
    pub fn counters(&self) -> InstanceCounters {
        InstanceCounters::default()
    }

    /// How often each limit fired, by the limit's name.
    #[must_use]
    pub fn limits_fired(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Refuses new requests from now on; those in flight go on.
    pub fn drain(&self) {}

    /// Resolves once nothing runs and nothing waits.
    pub async fn idle(&self) {}
}
