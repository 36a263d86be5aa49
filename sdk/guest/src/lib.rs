//! marcato-guest
