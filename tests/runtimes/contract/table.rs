//! The table of the contract in docs/apps.md. `RIP_UPDATE=1 cargo test --test runtimes contract::table` writes it anew.

use super::marks::{self, Cell};
use super::{Column, Rule};
use std::fmt::Write as _;
use std::path::Path;

const BEGIN: &str = "| what a worker keeps |";

/// In Markdown: a row for each rule, then the reasons of the cells that cannot hold.
fn table() -> String {
    let titles: Vec<&str> = Column::ALL.iter().map(|column| column.title()).collect();
    let mut text = format!("{BEGIN} {} |\n|---|{}\n", titles.join(" | "), ":-:|".repeat(titles.len()));
    let mut reasons: Vec<&str> = Vec::new();
    for rule in Rule::all() {
        let cells = Column::ALL.map(|column| match marks::of(rule.name, column) {
            Cell::Holds => "✓".to_owned(),
            Cell::Open(_) => "open".to_owned(),
            Cell::Cannot(reason) => {
                let known = reasons.iter().position(|other| *other == reason);
                let number = known.unwrap_or_else(|| {
                    reasons.push(reason);
                    reasons.len() - 1
                });
                format!("({})", number + 1)
            }
        });
        let _ = writeln!(text, "| {} | {} |", rule.name, cells.join(" | "));
    }
    text.push('\n');
    for (at, reason) in reasons.iter().enumerate() {
        let _ = writeln!(text, "{}. {reason}", at + 1);
    }
    text
}

#[test]
fn table_is_in_the_docs() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/apps.md");
    let page = std::fs::read_to_string(&path).expect("the page");
    if page.contains(&table()) {
        return;
    }
    assert!(
        std::env::var_os("RIP_UPDATE").is_some(),
        "docs/apps.md has another table; RIP_UPDATE=1 cargo test --test runtimes contract::table writes it"
    );
    let (before, remaining) = page.split_once(BEGIN).expect("a table");
    // The table and the list behind it are two paragraphs.
    let after = remaining.splitn(3, "\n\n").nth(2).expect("text behind the table");
    std::fs::write(path, format!("{before}{}\n{after}", table())).expect("the page can be written");
}
