//! marcato-benches
