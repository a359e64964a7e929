//! Faults under the server's feet: a plan for the injector (`tests/faults/inject.rs` has the words), and what has
//! come of it.

use super::server::{Server, ServerBuilder};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::NamedTempFile;

#[path = "../faults/inject/plan.rs"]
mod plan;

/// A plan that a server runs under. Its rules are known by their words.
#[derive(Debug)]
pub struct Faults {
    rules: Vec<String>,
    seed: u64,
    page: NamedTempFile,
}

impl Faults {
    /// Rules that hold from the start.
    pub fn new(rules: &str) -> Faults {
        let faults = Faults::for_later(rules);
        faults.turn_on();
        faults
    }

    /// Rules that hold when they are turned on.
    pub fn for_later(rules: &str) -> Faults {
        let seed = match plan::parse(rules) {
            Ok((_, seed)) => seed,
            Err(phrase) => panic!("no rule: {phrase}"),
        };
        let page = NamedTempFile::new().expect("a temporary file");
        page.as_file().set_len(plan::PAGE_BYTES as u64).expect("a file can be made longer");
        let rules = rules.split_whitespace().filter(|phrase| !phrase.starts_with("seed=")).map(str::to_owned);
        Faults { rules: rules.collect(), seed, page }
    }

    /// All rules hold from now on.
    pub fn turn_on(&self) {
        self.switch(1);
    }

    /// None holds any more.
    pub fn turn_off(&self) {
        self.switch(0);
    }

    fn switch(&self, on: u64) {
        for index in 0..self.rules.len() {
            self.write(index * plan::WORDS + plan::IS_ON, on);
        }
    }

    /// One rule holds, or no more.
    pub fn turn_one(&self, rule: &str, is_on: bool) {
        self.write(self.index(rule) * plan::WORDS + plan::IS_ON, u64::from(is_on));
    }

    /// How often a rule has struck.
    pub fn hits(&self, rule: &str) -> u64 {
        self.read(self.index(rule) * plan::WORDS + plan::HITS)
    }

    /// All that have struck, and how often.
    pub fn all_hits(&self) -> Vec<(String, u64)> {
        self.rules.iter().map(|rule| (rule.clone(), self.hits(rule))).collect()
    }

    /// Each rule has struck: what came through did so under faults.
    #[track_caller]
    pub fn assert_all_struck(&self) {
        assert!(self.all_hits().iter().all(|(_, hits)| *hits > 0), "{:?}", self.all_hits());
    }

    /// Whether the server runs with the injector in it.
    pub fn are_at_work(&self) -> bool {
        self.read(plan::PAGE_WORDS - 1) == 1
    }

    fn index(&self, rule: &str) -> usize {
        let index = self.rules.iter().position(|other| other == rule);
        index.unwrap_or_else(|| panic!("{rule} is none of {:?}", self.rules))
    }

    fn read(&self, phrase: usize) -> u64 {
        let mut bytes = [0; 8];
        self.page().read_exact_at(&mut bytes, phrase as u64 * 8).expect("the page can be read");
        u64::from_ne_bytes(bytes)
    }

    fn write(&self, phrase: usize, value: u64) {
        self.page().write_all_at(&value.to_ne_bytes(), phrase as u64 * 8).expect("the page can be written");
    }

    fn page(&self) -> &File {
        self.page.as_file()
    }
}

impl ServerBuilder {
    /// Has the server run under a plan.
    pub fn faults(self, faults: &Faults) -> ServerBuilder {
        let text = format!("{} seed={}", faults.rules.join(" "), faults.seed);
        self.env("LD_PRELOAD", injector().expect("asked before"))
            .env("RIP_FAULTS", text)
            .env("RIP_FAULTS_PAGE", faults.page.path())
    }

    /// Starts a server that has its faults from the start.
    pub fn start_under(self, faults: &Faults) -> Server {
        let server = self.faults(faults).start();
        // Written before `main`, and it listens by now.
        assert!(faults.are_at_work(), "the injector was not loaded");
        server
    }
}

/// The injector's library. `None` where there are no shared libraries to be loaded before a program.
pub fn injector() -> Option<PathBuf> {
    if cfg!(target_feature = "crt-static") {
        return None;
    }
    let path = super::server_program().with_file_name("examples").join("libinject.so");
    assert!(
        path.is_file(),
        "{} is missing: `cargo test` builds it, with --test so does `cargo build --example inject`",
        path.display()
    );
    Some(path)
}
