//! The data services whose databases this host owns: one SQLite file and one thread per service.
//!
//! Owns: the files `{id}.sqlite`, their life (open, check, back up, restore, remove) and the two
//! services over them. Does not own: who may call (the runtime's bindings), nor the way to a service
//! of another host (hostd's remote clients). Flow: request, last step (guest -> runtime -> here).

mod access;
mod database;
mod error;
mod host;
mod keyvalue;
mod restore;
mod worker;

pub use error::ServiceError;
pub use host::ServiceHost;

#[cfg(test)]
mod tests;
