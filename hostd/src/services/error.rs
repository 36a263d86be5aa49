//! What can go wrong with a service's database, told apart as far as an operator acts differently.

use marcato_api::{IdError, ServiceId, ServiceKind};
use rusqlite::ErrorCode;

/// Why a verb on a service failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// This host has no such service.
    #[error("no service {0} on this host")]
    NotFound(ServiceId),
    /// The database (or the backup) is of another kind.
    #[error("the database is not of kind {expected}")]
    WrongKind {
        /// What it should be.
        expected: ServiceKind,
    },
    /// The database is damaged; restoring a backup mends it.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// What was given to restore is not a usable backup. The data in place was left alone.
    #[error("not a usable backup: {0}")]
    BadBackup(String),
    /// The disk, or the room that a service may take, is full.
    #[error("the disk is full")]
    DiskFull,
    /// It does not answer now.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The file system failed.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A file's name is not a service id.
    #[error("a service id")]
    Id(#[from] IdError),
}

impl ServiceError {
    pub(super) fn io(action: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}

/// What SQLite said, reduced to what a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// No room.
    DiskFull,
    /// Damaged: from here on no answer can be trusted.
    Corrupt(String),
    /// Not a database of this kind.
    WrongKind,
    /// Anything that may pass.
    Unavailable(String),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::Error as E;
        match &error {
            E::SqliteFailure(inner, _) => match inner.code {
                ErrorCode::DiskFull => Self::DiskFull,
                ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Self::Corrupt(error.to_string()),
                _ => Self::Unavailable(error.to_string()),
            },
            // A stored value that is not what we stored: damage as well.
            E::FromSqlConversionFailure(..)
            | E::IntegralValueOutOfRange(..)
            | E::InvalidColumnType(..)
            | E::Utf8Error(..) => Self::Corrupt(error.to_string()),
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

impl Fault {
    pub(super) fn into_service_error(self, expected: ServiceKind) -> ServiceError {
        match self {
            Self::DiskFull => ServiceError::DiskFull,
            Self::Corrupt(reason) => ServiceError::Corrupt(reason),
            Self::WrongKind => ServiceError::WrongKind { expected },
            Self::Unavailable(reason) => ServiceError::Unavailable(reason),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::DiskFull => f.write_str("the disk is full"),
            Self::Corrupt(reason) => write!(f, "the database is damaged: {reason}"),
            Self::WrongKind => f.write_str("the database is of another kind"),
            Self::Unavailable(reason) => f.write_str(reason),
        }
    }
}
