//! State machines as tables: each state with those that may follow it, and the deadline that runs in it. What a machine's
//! one door asserts, what the reference shows, and what their test compares.

/// A state's entry.
#[derive(Debug)]
pub(crate) struct Row<S: 'static> {
    pub state: S,
    /// What may follow.
    pub next: &'static [S],
    /// What ends the state by the clock; for the reference alone.
    #[cfg_attr(not(test), allow(dead_code))]
    pub deadline: &'static str,
}

/// Whether the table has that edge.
pub(crate) fn may_become<S: PartialEq>(table: &[Row<S>], from: &S, to: &S) -> bool {
    table.iter().any(|entry| entry.state == *from && entry.next.contains(to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Debug;

    /// The table as the reference has it.
    fn shown<S: Debug>(table: &[Row<S>]) -> Vec<String> {
        let line = |entry: &Row<S>| {
            let next: Vec<String> = entry.next.iter().map(|state| format!("{state:?}")).collect();
            let next = if next.is_empty() { "–".to_owned() } else { next.join(", ") };
            format!("| {:?} | {next} | {} |", entry.state, entry.deadline)
        };
        table.iter().map(line).collect()
    }

    /// The rows of the table under that heading.
    fn documented<'a>(text: &'a str, heading: &str) -> Vec<&'a str> {
        let lines = text.lines().skip_while(|line| *line != format!("## {heading}")).skip(1);
        let lines = lines.take_while(|line| !line.starts_with("## "));
        lines.filter(|line| line.starts_with("| ") && !line.starts_with("| state ")).collect()
    }

    #[test]
    fn the_reference_has_every_state_and_every_edge() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/lifecycle.md");
        let text = std::fs::read_to_string(path).expect("the chapter");
        for (heading, table) in [
            ("A client", shown(crate::reactor::CLIENT)),
            ("An exchange", shown(crate::reactor::EXCHANGE)),
            ("A link", shown(crate::reactor::LINK)),
            ("A worker", shown(crate::fleet::WORKER)),
            ("A slot", shown(crate::fleet::SLOT)),
            ("A succession", shown(crate::fleet::SUCCESSION)),
            ("A template", shown(crate::fleet::TEMPLATE)),
        ] {
            assert_eq!(
                documented(&text, heading),
                table,
                "{heading} in docs/lifecycle.md:\n{}",
                table.join("\n")
            );
        }
    }

    #[test]
    fn only_what_the_table_has_is_an_edge() {
        let table = [Row { state: 1, next: &[2], deadline: "" }, Row { state: 2, next: &[], deadline: "" }];
        assert!(may_become(&table, &1, &2) && !may_become(&table, &2, &1) && !may_become(&table, &1, &1));
    }
}
