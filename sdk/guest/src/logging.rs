//! `wasi:logging`: messages with a level. The platform adds app, revision, instance and request id.

pub use crate::bindings::wasi::logging::logging::{Level, log};

/// Something an operator should know.
pub fn warn(context: &str, message: &str) {
    log(Level::Warn, context, message);
}

/// Something failed.
pub fn error(context: &str, message: &str) {
    log(Level::Error, context, message);
}

/// Something happened as it should.
pub fn info(context: &str, message: &str) {
    log(Level::Info, context, message);
}
