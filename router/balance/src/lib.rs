//! marcato-balance
