//! What an operator decides over apps: which process an app's instances run in.

use serde::{Deserialize, Serialize};

/// Which process an app's instances run in. A class for a virtual machine of its own comes after these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum IsolationClass {
    /// One worker process for all apps of a trust group on a host.
    #[default]
    Shared,
    /// A worker process of the app's own on each host.
    Process,
}
