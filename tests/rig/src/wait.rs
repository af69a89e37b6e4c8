//! Waiting for a condition, never for a span of time.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Asks `condition` until it answers, and says how long that took.
///
/// # Errors
/// `what` and the last reason it was not so, once `deadline` has passed.
pub fn wait_for<T>(
    what: impl Display,
    deadline: Duration,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let began = Instant::now();
    loop {
        let why = match condition() {
            Ok(answer) => return Ok((answer, began.elapsed())),
            Err(why) => why,
        };
        if began.elapsed() >= deadline {
            bail!("waited {deadline:?} for {what}: {why:#}");
        }
        thread::sleep(PAUSE);
    }
}

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_conditions_own() {
        let mut asked = 0;
        let waited = wait_for("the third look", Duration::from_secs(5), || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { bail!("look {asked}") }
        });
        assert_eq!(waited.map(|(answer, _)| answer).ok(), Some(3));
    }

    #[test]
    fn a_wait_in_vain_says_why() {
        let waited = wait_for("rain", Duration::ZERO, || -> Result<()> { bail!("blue sky") });
        let told = waited.map(|_| ()).map_err(|why| why.to_string());
        assert_eq!(told, Err("waited 0ns for rain: blue sky".to_owned()));
    }
}
