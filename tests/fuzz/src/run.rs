//! [`target!`](crate::target): the body of a fuzz target.

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe};
use std::time::Duration;

/// The longest that a target takes of `cargo test`, on a machine that is too busy for its number of cases.
#[doc(hidden)]
pub const LONGEST: Duration = Duration::from_secs(15);

/// A target's function. What it holds beside its input (a server, a folder) is left as it is after a failure, for the
/// failure ends the target.
#[doc(hidden)]
#[derive(Debug)]
pub struct Unwind<F>(AssertUnwindSafe<F>);

impl<F> Unwind<F> {
    /// Takes the function.
    pub fn new<T>(run: F) -> Self
    where
        F: Fn(&T),
    {
        Self(AssertUnwindSafe(run))
    }
}

impl<F> Deref for Unwind<F> {
    type Target = F;
    fn deref(&self) -> &F {
        &self.0
    }
}

impl<F> UnwindSafe for Unwind<F> {}
impl<F> RefUnwindSafe for Unwind<F> {}

/// Runs a function on `cases` random inputs, or on as many as `cargo xtask fuzz` asks for. A failure prints the input,
/// made as small as it still fails, and the seed that makes it again: `BOLERO_RANDOM_SEED=SEED cargo test NAME`.
///
/// ```ignore
/// #[test]
/// fn fuzz_sizes() {
///     marcato_fuzz::target!(1000, |input: &Input| assert!(parse(&input.text(GOOD, WORDS)).is_ok_and(is_within)));
/// }
/// ```
#[macro_export]
macro_rules! target {
    ($cases:expr, |$input:ident: &$type:ty| $body:expr) => {{
        let run = $crate::Unwind::new(|$input: &$type| $body);
        $crate::bolero::check!()
            .with_iterations($cases)
            .with_test_time($crate::LONGEST)
            .with_type::<$type>()
            .for_each(move |input: &$type| (*run)(input));
    }};
}
