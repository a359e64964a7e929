//! Tests that cannot run here: told all together when the run is over, where nobody overlooks them, and failures where
//! `RIP_TEST_ALL=1` says that everything is to be tested.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

/// Each line once, however many tests say it.
static LINES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// The test at hand, or `what` of it, does not run for want of something that can be installed.
///
/// # Panics
/// Where `RIP_TEST_ALL=1`.
pub fn skip(what: &str, why: &str) {
    note(what, why);
    assert!(
        !std::env::var("RIP_TEST_ALL").is_ok_and(|value| value == "1"),
        "RIP_TEST_ALL=1, and {what} cannot be tested here: {why} (.ci/run installs what it can)"
    );
}

/// The same for what few machines have or allow, `RIP_TEST_ALL=1` or not.
pub fn note(what: &str, why: &str) {
    static AT_EXIT: Once = Once::new();
    // The test runner ends by `exit`, when all tests have ended.
    AT_EXIT.call_once(|| {
        // SAFETY: `tell` is a plain function without arguments that does not unwind.
        let result = unsafe { nix::libc::atexit(tell) };
        assert_eq!(result, 0, "atexit takes at least 32 functions");
    });
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("a test");
    LINES.lock().unwrap_or_else(PoisonError::into_inner).insert(format!("skipped: {test}: {what}: {why}\n"));
}

extern "C" fn tell() {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    let text: String = lines.iter().map(String::as_str).collect();
    // Whoever has closed stderr does not want to know.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
