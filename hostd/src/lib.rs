//! marcato-hostd
