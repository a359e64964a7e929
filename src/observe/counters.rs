//! Counters in Prometheus' text, added up: those of a server with those of the servers before it. Pure.

use std::collections::BTreeMap;

/// Values of counters and histograms by their names and labels, as they stand in the text.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Counters(BTreeMap<String, f64>);

/// The lines of what only grows, each with its value.
fn growing(text: &str) -> impl Iterator<Item = (&str, f64)> {
    let mut grows = false;
    text.lines().filter_map(move |line| {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            grows = kind.ends_with(" counter") || kind.ends_with(" histogram");
        }
        let (name, value) = line.rsplit_once(' ').filter(|_| grows && !line.starts_with('#'))?;
        Some((name, value.parse().ok()?))
    })
}

impl Counters {
    pub(crate) fn parse(text: &str) -> Counters {
        Counters(growing(text).map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Only the lines that [`Counters::parse`] reads, for the way to another server.
    pub(crate) fn only(text: &str) -> String {
        let is_kept = |line: &&str| line.starts_with("# TYPE ") || !line.starts_with('#');
        text.lines().filter(is_kept).map(|line| format!("{line}\n")).collect()
    }

    /// The text, with these added to what grows in it.
    pub(crate) fn add_to(&self, text: String) -> String {
        if self.0.is_empty() {
            return text;
        }
        let mut sums: BTreeMap<&str, f64> = growing(&text).collect();
        for (name, value) in &mut sums {
            *value += self.0.get(*name).copied().unwrap_or(0.0);
        }
        let line = |line: &str| match line.rsplit_once(' ').and_then(|(name, _)| sums.get_key_value(name)) {
            Some((name, sum)) => format!("{name} {sum}\n"),
            None => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a Of a.\n# TYPE a counter\na{b=\"c d\"} 3\na{b=\"e\"} 1\n\
                        # HELP g Of g.\n# TYPE g gauge\ng 7\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 2\nh_sum 0.5\n";

    #[test]
    fn what_grows_is_added_up_and_all_else_left_alone() {
        let sum = Counters::parse(TEXT).add_to(TEXT.to_owned());
        let expected = TEXT.replace("} 3", "} 6").replace("\"e\"} 1", "\"e\"} 2").replace("} 2\nh", "} 4\nh");
        assert_eq!(sum, expected.replace("0.5", "1"));
        assert_eq!(Counters::default().add_to(TEXT.to_owned()), TEXT);
    }

    #[test]
    fn the_way_to_another_server_keeps_what_counts() {
        assert_eq!(Counters::parse(&Counters::only(TEXT)), Counters::parse(TEXT));
        assert!(!Counters::only(TEXT).contains("HELP"));
    }
}
