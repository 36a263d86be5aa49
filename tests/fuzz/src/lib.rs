//! What the fuzz targets of the other crates share: how one runs, what it gets, and how a panic is seen that a server
//! swallowed. A dependency of tests only.
//!
//! A target is a `#[test]` beside the parser that it drives, with [`target!`] as its body. Under `cargo test` it gets a
//! bounded number of random inputs; `cargo xtask fuzz` runs the same function for longer, or with libFuzzer, which
//! follows what the code covers. Owns no property: each target states its own.

mod edits;
mod json;
mod panics;
mod run;

pub use edits::{Edit, Edits, Input};
pub use json::{JsonEdit, JsonInput};
pub use panics::PanicWatch;

#[doc(hidden)]
pub use bolero;
#[doc(hidden)]
pub use run::{LONGEST, Unwind};

#[cfg(test)]
mod tests;
