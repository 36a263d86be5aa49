//! marcato-tests
