//! Waiting for a condition with a bound: the only kind of waiting in tests.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const STEP: Duration = Duration::from_millis(20);

/// Asks again and again until the answer is `Some`. Errors: `what` did not hold within `bound`, with the
/// last reason that `ask` gave.
pub async fn until<T, F>(what: &str, bound: Duration, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let begin = Instant::now();
    let mut last = String::from("it just was not so");
    loop {
        match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => last = format!("{error:#}"),
        }
        if begin.elapsed() > bound {
            bail!("waited {} s for: {what}; last: {last}", bound.as_secs_f32());
        }
        tokio::time::sleep(STEP).await;
    }
}
