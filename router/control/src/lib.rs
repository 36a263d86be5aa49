//! The control plane: admin API, desired state, certificates, and the tasks that make it so.
//!
//! Owns: the store and what is in it, who may change it, the cluster's authority. Does not own the
//! request path (edge), decisions (plan) nor transport to hosts (`marcato-client`). Flow: operator ->
//! admin API -> store -> plan -> push -> hosts.

mod api;
mod auth;
mod blobs;
mod ca;
mod control;
mod files;
mod hosts;
mod names;
mod observed;
mod state;
mod store;
mod tasks;
mod tls;
mod usage;

pub use blobs::{BlobError, Blobs};
pub use ca::{Authority, CaError, Leaf};
pub use control::{Control, ControlConfig, ControlError};
pub use files::FileError;
pub use hosts::HostClients;
pub use marcato_plan::Settings as PlanSettings;
pub use observed::{Observed, ObservedCell, ObservedHost};
pub use state::{
    ComponentRecord, DebugSecret, Deed, Desired, HostRecord, JoinOutcome, JoinTokenRecord, Policies, PolicyRecord,
    RevisionDraft, SealError, SealKey, ServiceRecord, State, StateError, StateResult, TokenRecord,
};
pub use store::{
    Change, Check, Expected, Listing, Order, SqliteStore, Store, StoreError, StoreResult, Txn, Versioned, Wish, Write,
};
pub use tasks::{Tasks, spawn as spawn_tasks};
pub use tls::ReloadingCert;
pub use usage::{UsageError, UsageStore};
