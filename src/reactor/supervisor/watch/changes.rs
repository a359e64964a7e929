//! When changed sources are acted on. Pure: what was touched comes in with the time.
//!
//! An editor that saves, or a checkout of many files, is one change: it is acted on when nothing more has come for a
//! moment. A loop (an app that writes a source of its own at each start or request) is noticed by its pace, and
//! slowed down.

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Nothing more has come for so long: the change is whole.
const IDLE_FOR: Duration = Duration::from_millis(30);
/// A change that goes on and on is acted on after this.
const MAX_SETTLE: Duration = Duration::from_millis(500);
/// Paths that are remembered of one change; of more than that, all counts.
const MAX_PATHS: usize = 1024;

/// So many replacements within [`LOOP_WITHIN`] are a loop: people save less often.
const LOOP_TIMES: usize = 6;
const LOOP_WITHIN: Duration = Duration::from_secs(10);
/// The first wait between two replacements of a loop; it doubles up to the second.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const MAX_WAIT: Duration = Duration::from_secs(8);
/// A loop is over when nothing was replaced for so long.
const LOOP_OVER: Duration = Duration::from_secs(30);

/// What has been touched and is not acted on yet.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    settling: Option<Settling>,
    pace: Pace,
}

#[derive(Debug)]
struct Settling {
    paths: BTreeSet<PathBuf>,
    since: Instant,
    last: Instant,
}

/// How often workers have been replaced for changes.
#[derive(Debug, Default)]
struct Pace {
    recent: VecDeque<Instant>,
    /// Of a loop: the wait between two replacements.
    wait: Option<Duration>,
}

impl Changes {
    /// A source has other content than before.
    pub(crate) fn touch(&mut self, path: PathBuf, now: Instant) {
        let settling =
            self.settling.get_or_insert_with(|| Settling { paths: BTreeSet::new(), since: now, last: now });
        settling.last = now;
        if settling.paths.len() < MAX_PATHS {
            settling.paths.insert(path);
        }
    }

    /// How many paths the change at hand has.
    pub(crate) fn count(&self) -> usize {
        self.settling.as_ref().map_or(0, |settling| settling.paths.len())
    }

    /// When the change at hand is to be acted on.
    pub(crate) fn due(&self) -> Option<Instant> {
        let Settling { since, last, .. } = self.settling.as_ref()?;
        let settled = (*last + IDLE_FOR).min(*since + MAX_SETTLE);
        Some(self.pace.not_before().map_or(settled, |not_before| settled.max(not_before)))
    }

    /// Takes the change at hand, if it is due.
    pub(crate) fn take(&mut self, now: Instant) -> Option<BTreeSet<PathBuf>> {
        self.due().filter(|due| *due <= now)?;
        self.settling.take().map(|settling| settling.paths)
    }

    /// Whether a loop is slowed down: then nobody waits for the new code.
    pub(crate) fn is_slowed(&self, now: Instant) -> bool {
        self.pace.not_before().is_some_and(|not_before| now < not_before)
    }

    /// Workers are replaced now. `true`: that has become a loop.
    pub(crate) fn replaced(&mut self, now: Instant) -> bool {
        self.pace.count(now)
    }
}

impl Pace {
    fn not_before(&self) -> Option<Instant> {
        Some(*self.recent.back()? + self.wait?)
    }

    fn count(&mut self, now: Instant) -> bool {
        let is_over = self.recent.back().is_none_or(|last| now.duration_since(*last) > LOOP_OVER);
        if is_over {
            *self = Pace::default();
        }
        if self.recent.len() == LOOP_TIMES {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        if let Some(wait) = &mut self.wait {
            *wait = (*wait * 2).min(MAX_WAIT);
            return false;
        }
        let is_loop = self.recent.len() == LOOP_TIMES
            && self.recent.front().is_some_and(|first| now.duration_since(*first) < LOOP_WITHIN);
        if is_loop {
            self.wait = Some(FIRST_WAIT);
        }
        is_loop
    }
}

/// The relative modules that a source of JavaScript imports or requires and that may be JSON: those that end so, and
/// those without an ending.
pub(super) fn json_modules(text: &[u8]) -> Vec<String> {
    let mut modules = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].iter().position(|byte| b"'\"`".contains(byte)) {
        let (open, quote) = (from + at, text[from + at]);
        let Some(length) = text[open + 1..].iter().position(|&byte| byte == quote || byte == b'\n') else {
            break;
        };
        let close = open + 1 + length;
        from = open + 1;
        if text[close] != quote {
            continue;
        }
        let Ok(name) = std::str::from_utf8(&text[open + 1..close]) else { continue };
        if is_imported(&text[..open]) {
            from = close + 1;
            let last = name.rsplit('/').next().unwrap_or(name);
            let may_be_json = last.ends_with(".json") || !last.contains('.');
            if name.starts_with('.') && may_be_json {
                modules.push(name.to_owned());
            } else if last.ends_with(".json") {
                // By an alias, which only the bundler knows: its name has to do.
                modules.push(last.to_owned());
            }
        }
    }
    modules
}

/// Whether what stands before a string makes it a module: `from`, `import`, `import(`, `require(`.
fn is_imported(before: &[u8]) -> bool {
    let trim = |text: &[u8]| text.trim_ascii_end().len();
    let mut end = trim(before);
    if end > 0 && before[end - 1] == b'(' {
        end = trim(&before[..end - 1]);
    }
    ["from", "import", "require"].iter().any(|name| before[..end].ends_with(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn what_is_written_together_is_one_change() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        for (at, path) in [(0, "a.js"), (20, "b.js"), (40, "a.js")] {
            changes.touch(path.into(), start + ms(at));
        }
        assert_eq!(changes.due(), Some(start + ms(70)));
        assert_eq!(changes.take(start + ms(69)), None);
        let paths = changes.take(start + ms(70)).expect("it is due");
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), [PathBuf::from("a.js"), PathBuf::from("b.js")]);
        assert_eq!(changes.due(), None);
    }

    #[test]
    fn a_change_without_an_end_is_acted_on() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        for at in 0..100 {
            changes.touch("a.js".into(), start + ms(at * 10));
        }
        assert_eq!(changes.due(), Some(start + MAX_SETTLE));
    }

    #[test]
    fn a_loop_is_told_once_and_slowed_down_until_it_is_over() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let mut now = start;
        let mut reported = 0;
        let mut times = Vec::new();
        while now < start + Duration::from_secs(60) {
            changes.touch("a.js".into(), now);
            now = changes.due().expect("something is to be done");
            assert!(changes.take(now).is_some());
            reported += usize::from(changes.replaced(now));
            times.push(now);
        }
        assert_eq!(reported, 1);
        assert!(times.len() < 20, "{} replacements in a minute", times.len());
        assert!(changes.is_slowed(now));
        // A minute later an edit counts at once.
        now += Duration::from_secs(60);
        assert!(!changes.is_slowed(now));
        changes.touch("a.js".into(), now);
        assert_eq!(changes.due(), Some(now + IDLE_FOR));
        assert!(!changes.replaced(now + IDLE_FOR));
        assert!(!changes.is_slowed(now + IDLE_FOR));
    }

    #[test]
    fn somebody_who_saves_often_is_no_loop() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        for save in 0..60 {
            assert!(!changes.replaced(start + Duration::from_secs(3 * save)));
        }
    }

    #[test]
    fn only_modules_may_be_imported_json() {
        let text = br#"
import data from './data.json' with { type: 'json' }
import "./setup"
const a = require ( "../a.json" ), b = await import(`./b`)
export { x } from './part.ts'
import alias from '@/config/alias.json'
import express from 'express'
writeFileSync('./state.json', "it's")
const from = 'db.json'
"#;
        let modules = json_modules(text);
        assert_eq!(modules, ["./data.json", "./setup", "../a.json", "./b", "alias.json"]);
    }

    /// Random edits and looks, against a plain list of what was touched.
    #[test]
    fn edits_are_acted_on_when_a_plain_list_says_so() {
        let start = Instant::now();
        let (mut changes, mut now) = (Changes::default(), start);
        let mut touched: Vec<(Instant, PathBuf)> = Vec::new();
        let mut draws = 4711u64;
        let mut draw = |bound: u64| {
            draws = draws.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (draws >> 33) % bound
        };
        let mut taken = 0;
        for _ in 0..5000 {
            now += ms(draw(45));
            if draw(4) > 0 {
                let path = PathBuf::from(format!("{}.js", draw(6)));
                changes.touch(path.clone(), now);
                touched.push((now, path));
            }
            let due = touched
                .first()
                .zip(touched.last())
                .map(|((first, _), (last, _))| (*last + IDLE_FOR).min(*first + MAX_SETTLE));
            let paths: BTreeSet<PathBuf> = touched.iter().map(|(_, path)| path.clone()).collect();
            assert_eq!((changes.due(), changes.count()), (due, paths.len()));
            let is_due = due.is_some_and(|due| due <= now);
            assert_eq!(changes.take(now), is_due.then_some(paths));
            if is_due {
                touched.clear();
                taken += 1;
            }
        }
        assert!(taken > 100, "{taken} changes");
    }

    #[test]
    fn of_very_many_files_so_many_are_remembered() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        for number in 0..MAX_PATHS + 5 {
            changes.touch(number.to_string().into(), now);
        }
        assert_eq!(changes.count(), MAX_PATHS);
    }

    /// The moments of replacements, in seconds, and whether each is told to be a loop.
    fn loops(seconds: &[f64]) -> Vec<bool> {
        let (mut changes, start) = (Changes::default(), Instant::now());
        seconds.iter().map(|at| changes.replaced(start + Duration::from_secs_f64(*at))).collect()
    }

    #[test]
    fn six_replacements_within_ten_seconds_are_a_loop() {
        let none = [false; 5];
        assert_eq!(loops(&[0.0, 2.0, 4.0, 6.0, 8.0, 9.99])[5..], [true]);
        assert_eq!(loops(&[0.0, 2.0, 4.0, 6.0, 8.0, 10.0]), [&none[..], &[false]].concat());
        assert_eq!(loops(&[0.0, 1.0, 2.0, 3.0, 4.0]), none, "five");
        // The last six count: slow ones before them do not.
        assert_eq!(loops(&[0.0, 8.0, 10.0, 12.0, 14.0, 16.0, 17.9])[5..], [false, true]);
        // A pause of more than half a minute begins anew.
        assert_eq!(loops(&[0.0, 1.0, 2.0, 3.0, 4.0, 34.1, 34.2, 34.3])[5..], [false, false, false]);
    }

    #[test]
    fn the_wait_of_a_loop_doubles_up_to_eight_seconds_and_ends_after_half_a_minute() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let mut now = start;
        for _ in 0..5 {
            assert!(!changes.replaced(now));
        }
        assert!(!changes.is_slowed(now) && changes.replaced(now));
        for wait in [1, 2, 4, 8, 8, 8] {
            let until = now + Duration::from_secs(wait);
            assert!(changes.is_slowed(now) && changes.is_slowed(until - ms(1)) && !changes.is_slowed(until));
            changes.touch("a.js".into(), now);
            assert_eq!(changes.due(), Some(until));
            assert!(changes.take(until).is_some());
            now = until;
            assert!(!changes.replaced(now), "it was told");
        }
        let over = now + LOOP_OVER;
        assert!(!changes.replaced(over) && changes.is_slowed(over), "not over yet");
        let over = over + LOOP_OVER + ms(1);
        assert!(!changes.replaced(over) && !changes.is_slowed(over));
    }

    #[test]
    fn strings_that_are_no_modules_or_have_no_end_are_passed_over() {
        for (text, modules) in [
            (&b"import 'a.json'"[..], &["a.json"][..]),
            (b"import'./a'", &["./a"]),
            (b"from \"./a.json", &[]),
            (b"x = 'it\nimport './a.json'", &["./a.json"]),
            (b"import './a.mjs'; import './b.json'", &["./b.json"]),
            (b"import './a.b/c'", &["./a.b/c"]),
            (b"require('./a')require('./b')", &["./a", "./b"]),
            (b"'./a.json'", &[]),
            (b"('./a.json')", &[]),
            (b"load('./a.json')", &[]),
            (b"import '\xff.json'; import './b'", &["./b"]),
            (b"import './from'.json'", &["./from"]),
            (b"import './from'; import './b.json'", &["./from", "./b.json"]),
            (b"import 'x/y.json'", &["y.json"]),
            (b"import 'express'", &[]),
            (b"import ''", &[]),
            (b"", &[]),
        ] {
            assert_eq!(json_modules(text), modules, "{}", text.escape_ascii());
        }
    }
}
