//! marcato-plan
