//! What was perhaps meant by a word that nobody knows.

/// The known word nearest to `given`, if it is near enough to have been meant.
pub(crate) fn near_miss<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let nearest = known.map(|candidate| (distance(given, candidate), candidate)).min()?;
    (nearest.0 <= 1 + given.len() / 5).then_some(nearest.1)
}

/// How many letters must change to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut info: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = info[0];
        info[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let kept = diagonal + usize::from(letter != *other);
            diagonal = info[j + 1];
            info[j + 1] = kept.min(info[j] + 1).min(diagonal + 1);
        }
    }
    info[b.len()]
}
