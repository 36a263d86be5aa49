//! Ids and names as newtypes, validated where they enter.
//!
//! A name that is part of a DNS label, a file name and a metric label must be safe in all three, so
//! all names share one alphabet: lower-case letters, digits and inner hyphens, 1 to 63 characters
//! (RFC 1123 label).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not an RFC 1123 label.
    #[error("{what} {value:?}: use 1 to 63 lower-case letters, digits or inner hyphens")]
    Label {
        /// Which id.
        what: &'static str,
        /// The offending text, cut to 80 characters.
        value: String,
    },
    /// Not `sha256:` and 64 hexadecimal digits.
    #[error("digest {0:?}: expected sha256: and 64 lower-case hexadecimal digits")]
    Digest(String),
}

fn is_label(s: &str) -> bool {
    let bytes = s.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

fn cut(value: &str) -> String {
    value.chars().take(80).collect()
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"))]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks and wraps a text. Errors: [`IdError::Label`].
            pub fn new(value: impl AsRef<str>) -> Result<Self, IdError> {
                let value = value.as_ref();
                if is_label(value) {
                    Ok(Self(value.into()))
                } else {
                    Err(IdError::Label { what: $what, value: cut(value) })
                }
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(s)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

label!(
    /// An app, unique in the cluster: it is the first label of the app's default host name.
    AppName,
    "app name"
);
label!(
    /// An organization: the outermost owner.
    OrgName,
    "org name"
);
label!(
    /// A space within an org.
    SpaceName,
    "space name"
);
label!(
    /// A host (a node that runs hostd).
    HostId,
    "host id"
);
label!(
    /// One placement of a revision on a host: `{app}-{revision}-{suffix}` cut to a label.
    InstanceId,
    "instance id"
);
label!(
    /// What a person calls a service; unique in the cluster.
    ServiceName,
    "service name"
);
label!(
    /// A service's identity, never used again after deletion; also its database's file name.
    ServiceId,
    "service id"
);

impl OrgName {
    /// The org that exists from the start.
    #[must_use]
    pub fn default_org() -> Self {
        Self("default".into())
    }
}

impl SpaceName {
    /// The space that exists from the start.
    #[must_use]
    pub fn default_space() -> Self {
        Self("default".into())
    }
}

impl ServiceId {
    /// A fresh id.
    #[must_use]
    pub fn generate() -> Self {
        Self(format!("s{}", ulid::Ulid::new().to_string().to_lowercase()).into())
    }
}

impl InstanceId {
    /// The id of the `ordinal`-th instance of a revision; `nonce` tells re-placements apart.
    #[must_use]
    pub fn compose(app: &AppName, revision: RevisionNumber, nonce: u64) -> Self {
        let tail = format!("-r{}-{nonce:x}", revision.0);
        let room = 63 - tail.len().min(62);
        let head: String = app.as_str().chars().take(room).collect();
        Self(format!("{}{tail}", head.trim_end_matches('-')).into())
    }
}

/// A component's content address: `sha256:` and the hash of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^sha256:[0-9a-f]{64}$"))]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Box<str>);

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(Sha256::digest(bytes).into())
    }

    /// Wraps a finished SHA-256 state's output.
    #[must_use]
    pub fn from_sha256(hash: [u8; 32]) -> Self {
        Self(format!("sha256:{}", hex::encode(hash)).into())
    }

    /// The text with its prefix.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 hexadecimal digits, safe as a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// The first 12 digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        let ok = s
            .strip_prefix("sha256:")
            .is_some_and(|h| h.len() == 64 && h.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        if ok { Ok(Self(s.into())) } else { Err(IdError::Digest(cut(s))) }
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(s: String) -> Result<Self, IdError> {
        s.parse()
    }
}

impl From<Digest> for String {
    fn from(d: Digest) -> String {
        d.0.into()
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A revision's number: 1, 2, 3 … per app, never used twice.
    RevisionNumber
);
number!(
    /// The version of a host's config; a host refuses an older one than it holds.
    Generation
);
number!(
    /// A store-wide version of the desired state; also an object's `ETag`.
    StoreRevision
);
