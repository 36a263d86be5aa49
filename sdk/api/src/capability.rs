//! Which imports of a component the platform grants, and on what condition.
//!
//! One table serves `marcato push` (before the upload), the control plane and `docs/manifest.md`. It
//! says what is granted; the runtime's linker is what enforces it.

use crate::ServiceKind;

/// On what condition an interface is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// Every app has it.
    Always,
    /// It needs a binding of this kind.
    Binding(ServiceKind),
    /// It links always; without `allowed_outbound_hosts` every request is refused.
    OutboundHttp,
    /// It links, so that toolchains' components start, but every use is refused.
    Refused,
}

const TABLE: &[(&str, Grant)] = &[
    ("wasi:cli/", Grant::Always),
    ("wasi:clocks/", Grant::Always),
    ("wasi:random/", Grant::Always),
    ("wasi:io/", Grant::Always),
    ("wasi:config/", Grant::Always),
    ("wasi:logging/", Grant::Always),
    ("wasi:http/types", Grant::Always),
    ("wasi:http/outgoing-handler", Grant::OutboundHttp),
    ("wasi:http/client", Grant::OutboundHttp),
    ("wasi:filesystem/", Grant::Refused),
    ("wasi:sockets/", Grant::Refused),
    ("wasi:keyvalue/", Grant::Binding(ServiceKind::Keyvalue)),
    ("marcato:access/", Grant::Binding(ServiceKind::Access)),
];

/// `ns:pkg/iface@1.2.3` without its version.
#[must_use]
pub fn interface_of(import: &str) -> &str {
    import.split('@').next().unwrap_or(import)
}

/// The grant for an import, or `None` when the platform does not have it.
#[must_use]
pub fn grant_for(import: &str) -> Option<Grant> {
    let name = interface_of(import);
    TABLE
        .iter()
        .find(|(prefix, _)| if prefix.ends_with('/') { name.starts_with(prefix) } else { name == *prefix })
        .map(|(_, grant)| *grant)
}
