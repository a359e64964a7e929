//! State machines as tables: each state with those that may follow it, and the deadline that runs in it. What a machine's
//! one door asserts, what the reference shows, and what their test compares.

/// A state's row.
#[derive(Debug)]
pub struct Row<S: 'static> {
    pub state: S,
    /// What may follow.
    pub next: &'static [S],
    /// What ends the state by the clock. For the reference, and the test that compares the two.
    #[cfg_attr(not(test), allow(dead_code))]
    pub deadline: &'static str,
}

/// Whether the table has that edge.
pub fn may_become<S: PartialEq>(table: &[Row<S>], from: &S, to: &S) -> bool {
    table.iter().any(|row| row.state == *from && row.next.contains(to))
}
