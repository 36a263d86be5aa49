//! marcato-edge
