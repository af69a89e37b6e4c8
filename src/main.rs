//! hawser.
fn main(){}
