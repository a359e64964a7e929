//! The last reloads, and what came of them. Pure.

use super::timestamp;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The reloads that are kept. Older ones are in the log.
const MAX_ROLLS: usize = 10;
/// Of the reason why one failed: it may have a stack trace, which is in the log.
const MAX_ERROR_CHARS: usize = 1000;
/// What one says that another reload has overtaken.
const OVERTAKEN: &str = "another reload came, and began anew with the newest code";

/// The newest is at the front.
#[derive(Debug, Default)]
pub(crate) struct Rolls(VecDeque<Roll>);

#[derive(Debug)]
struct Roll {
    /// Since 1970.
    at: Duration,
    began: Instant,
    replaced: usize,
    of: usize,
    end: Option<End>,
}

#[derive(Debug)]
struct End {
    lasted: Duration,
    error: Option<String>,
}

impl Rolls {
    /// One that is still under way is overtaken by it.
    pub(crate) fn begin(&mut self, now: Instant, unix: Duration) {
        if self.is_under_way() {
            self.end(&Err(OVERTAKEN.to_owned()), now, unix);
        }
        self.0.truncate(MAX_ROLLS - 1);
        self.0.push_front(Roll { at: unix, began: now, replaced: 0, of: 0, end: None });
    }

    pub(crate) fn progress(&mut self, replaced: usize, of: usize) {
        if let Some(roll) = self.0.front_mut() {
            (roll.replaced, roll.of) = (replaced, of);
        }
    }

    pub(crate) fn end(&mut self, result: &Result<usize, String>, now: Instant, unix: Duration) {
        if !self.is_under_way() {
            // It has failed before it began.
            self.begin(now, unix);
        }
        if let Some(roll) = self.0.front_mut() {
            let error = result.as_ref().err().map(|error| error.chars().take(MAX_ERROR_CHARS).collect());
            roll.end = Some(End { lasted: now.saturating_duration_since(roll.began), error });
        }
    }

    fn is_under_way(&self) -> bool {
        self.0.front().is_some_and(|roll| roll.end.is_none())
    }

    pub(crate) fn to_json(&self, now: Instant) -> Value {
        let row = |roll: &Roll| {
            let lasted = roll.end.as_ref().map(|end| end.lasted);
            let seconds = lasted.unwrap_or_else(|| now.saturating_duration_since(roll.began)).as_secs_f64();
            json!({
                "at": timestamp(roll.at),
                "seconds": seconds,
                "replaced": roll.replaced,
                "of": roll.of,
                "ok": roll.end.as_ref().map(|end| end.error.is_none()),
                "error": roll.end.as_ref().and_then(|end| end.error.as_deref()),
            })
        };
        self.0.iter().map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_has_its_progress_and_its_end() {
        let (mut rolls, now, unix) = (Rolls::default(), Instant::now(), Duration::from_secs(1_772_366_400));
        rolls.begin(now, unix);
        rolls.progress(1, 4);
        let running = rolls.to_json(now + Duration::from_secs(2));
        assert_eq!(
            (&running[0]["ok"], &running[0]["seconds"], &running[0]["of"]),
            (&Value::Null, &json!(2.0), &json!(4))
        );
        rolls.end(&Err("no such module".into()), now + Duration::from_secs(3), unix);
        // One that fails before it begins is a row of its own.
        rolls.end(&Err("x".repeat(9999)), now + Duration::from_secs(9), unix);
        let rows = rolls.to_json(now + Duration::from_secs(60));
        assert_eq!(
            rows[1],
            json!({"at": "2026-03-01T12:00:00Z", "seconds": 3.0, "replaced": 1, "of": 4, "ok": false, "error": "no such module"})
        );
        assert_eq!(
            (&rows[0]["seconds"], rows[0]["error"].as_str().map(str::len)),
            (&json!(0.0), Some(MAX_ERROR_CHARS))
        );
        rolls.begin(now + Duration::from_secs(10), unix);
        rolls.begin(now + Duration::from_secs(14), unix);
        let rows = rolls.to_json(now + Duration::from_secs(60));
        assert_eq!((&rows[0]["ok"], &rows[1]["ok"]), (&Value::Null, &json!(false)), "overtaken");
        assert_eq!((&rows[1]["seconds"], &rows[1]["error"]), (&json!(4.0), &json!(OVERTAKEN)));
        rolls.end(&Ok(4), now, unix);
        for _ in 0..100 {
            rolls.begin(now, unix);
            rolls.end(&Ok(4), now, unix);
        }
        assert_eq!(rolls.to_json(now).as_array().map(Vec::len), Some(MAX_ROLLS));
        assert_eq!(rolls.to_json(now)[0]["ok"], true);
    }
}
