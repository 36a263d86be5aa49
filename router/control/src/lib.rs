//! marcato-control
