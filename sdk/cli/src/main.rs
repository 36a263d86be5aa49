//! marcato
fn main() {}
