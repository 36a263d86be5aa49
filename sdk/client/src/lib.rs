//! marcato-client
