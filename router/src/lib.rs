//! marcato-router
