//! The byte stream between the edge and a host on the same machine. Both ends use it; it knows nothing of either.

mod unix;

pub use unix::QuietUnix;
