//! The pages, one file per place in the app. All text goes through maud, which escapes it.

pub(crate) mod accounts;
pub(crate) mod audit;
pub(crate) mod layout;
pub(crate) mod login;
pub(crate) mod lookup;
pub(crate) mod setup;
pub(crate) mod user;
pub(crate) mod users;
