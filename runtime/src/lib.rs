//! marcato-runtime
