//! Suggests a known word for an unknown one: a synonym, or the word with the closest spelling.

/// Words that other libraries use, and the corresponding keys.
const SYNONYMS: &[(&str, &str)] = &[
    ("binary", "bin"),
    ("command", "cmd"),
    ("cwd", "current_dir"),
    ("env_var", "env"),
    ("grace", "stop_timeout"),
    ("log", "banner"),
    ("path", "unix"),
    ("pidfile", "pid_file"),
    ("port", "tcp"),
    ("program", "cmd"),
    ("ready", "wait_for"),
    ("signal", "stop_signal"),
    ("socket", "unix"),
    ("udp", "wait_for"),
    ("url", "http"),
    ("wait", "wait_for"),
    ("wait_until", "wait_for"),
];

/// The known word that the user probably meant, if one is close enough.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    for (other, meant) in SYNONYMS {
        if *other == word {
            return Some(meant);
        }
    }
    closest(word, known)
}

/// The known word with the most similar spelling, if one is close enough.
pub(crate) fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // Up to a third of the letters may be wrong. One wrong letter is always allowed.
    let (mut best, mut limit) = (None, (word.len() / 3).max(1) + 1);
    for candidate in known {
        let distance = distance(word, candidate);
        if distance < limit {
            (best, limit) = (Some(*candidate), distance);
        }
    }
    best
}

/// The edit distance: how many letters must be inserted, deleted, replaced or swapped with a
/// neighbour to turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if swapped {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn distances() {
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("", "tcp"), 3);
        assert_eq!(distance("timeout", "timeout"), 0);
        assert_eq!(distance("timout", "timeout"), 1);
        assert_eq!(distance("tiemout", "timeout"), 1, "neighbours swapped");
        assert_eq!(distance("stop_timeot", "timeout"), 6);
    }

    #[test]
    fn the_nearest_word_is_named_and_a_far_one_is_not() {
        let known = ["cmd", "tcp", "timeout", "stop_timeout"];
        assert_eq!(nearest("timout", &known), Some("timeout"));
        assert_eq!(nearest("stoptimeout", &known), Some("stop_timeout"));
        assert_eq!(nearest("tpc", &known), Some("tcp"));
        assert_eq!(nearest("command", &known), Some("cmd"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(nearest("x", &known), None);
    }
}
