//! marcato-hostd

pub mod services;
