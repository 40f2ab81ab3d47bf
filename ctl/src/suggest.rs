//! [`nearest`]: what a misspelt command may have meant.

/// The names that `word` may stand for: those that end in it after a slash, else the nearest ones by the letters that differ.
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> Vec<&'a str> {
    let ends_in_it: Vec<&str> =
        names.clone().into_iter().filter(|name| name.rsplit_once('/').is_some_and(|(_, last)| last == word)).collect();
    if !ends_in_it.is_empty() {
        return ends_in_it;
    }
    // A third of the letters, and one, may be wrong.
    let most = word.chars().count() / 3 + 1;
    let last = |name: &'a str| name.rsplit_once('/').map_or(name, |(_, last)| last);
    let nearer = |name: &'a str| distance(word, name).min(distance(word, last(name)));
    let distances: Vec<(usize, &str)> =
        names.into_iter().map(|name| (nearer(name), name)).filter(|(distance, _)| *distance <= most).collect();
    let least = distances.iter().map(|(distance, _)| *distance).min();
    distances.into_iter().filter(|(distance, _)| Some(*distance) == least).map(|(_, name)| name).collect()
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to make one of the other (the "optimal string
/// alignment" distance).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut least = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 5] = ["dpctl/dump-flows", "dpif/dump-flows", "dpctl/show", "flow-flush", "vlog/set"];

    #[test]
    fn letters_that_differ_are_counted() {
        for (a, b, wanted) in [("", "abc", 3), ("abc", "abc", 0), ("abc", "acb", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(a, b), wanted, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_are_suggested_and_what_is_far_off_is_not() {
        assert_eq!(nearest("dpctl/dump-flow", NAMES), ["dpctl/dump-flows"]);
        assert_eq!(nearest("dump-flows", NAMES), ["dpctl/dump-flows", "dpif/dump-flows"]);
        assert_eq!(nearest("flow-fulsh", NAMES), ["flow-flush"]);
        assert_eq!(nearest("dmup-flows", NAMES), ["dpctl/dump-flows", "dpif/dump-flows"]);
        assert_eq!(nearest("nosuch", NAMES), [""; 0]);
    }
}
