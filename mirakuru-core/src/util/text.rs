//! Text that other programs wrote, made fit to be shown.

/// Makes a line that somebody else wrote fit to be shown: without escape sequences and control
/// characters, without characters that turn the direction of writing, and cut at `limit` characters
/// with an ellipsis. Of a line that overwrites itself with carriage returns, what a terminal would
/// show at the end.
pub(crate) fn printable(line: &str, limit: usize) -> String {
    let line = line
        .rsplit('\r')
        .find(|part| !part.is_empty())
        .unwrap_or_default();
    let mut shown = String::new();
    let mut count = 0;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        let c = match c {
            '\u{1b}' => {
                match chars.next() {
                    // A control sequence: parameters, then one final byte.
                    Some('[') => {
                        while chars.next_if(|c| ('\u{20}'..='\u{3f}').contains(c)).is_some() {}
                        chars.next_if(|c| ('\u{40}'..='\u{7e}').contains(c));
                    }
                    // A string for the terminal: a title, a link. Ends with BEL or ESC \.
                    Some(']' | 'P' | 'X' | '^' | '_') => {
                        while let Some(c) = chars.next() {
                            if c == '\u{7}' {
                                break;
                            }
                            if c == '\u{1b}' {
                                chars.next_if_eq(&'\\');
                                break;
                            }
                        }
                    }
                    // Any other: intermediate bytes, then one final byte, which may be this one.
                    Some(c) if ('\u{20}'..='\u{2f}').contains(&c) => {
                        while chars.next_if(|c| ('\u{20}'..='\u{2f}').contains(c)).is_some() {}
                        chars.next();
                    }
                    _ => {}
                }
                continue;
            }
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        };
        if count == limit {
            shown.push('\u{2026}');
            break;
        }
        shown.push(c);
        count += 1;
    }
    shown
}

/// How many letters must be added, removed or replaced to make one of the other.
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_gone() {
        for (line, shown) in [
            ("plain \u{e9}\u{4e2d}", "plain \u{e9}\u{4e2d}"),
            ("\u{1b}[1;38;5;12mbold\u{1b}[m", "bold"),
            ("\u{1b}[?25l\u{1b}(Bx\u{1b}=y\u{1b}", "xy"),
            ("\u{1b}]8;;http://x\u{1b}\\link", "link"),
            ("\u{1b}[31", ""),
            ("\u{9b}31m\u{85}\0", "\u{fffd}31m\u{fffd}\u{fffd}"),
            ("10%\r55%\r100%\r", "100%"),
            ("abc\u{202e}fed", "abc\u{fffd}fed"),
        ] {
            assert_eq!(printable(line, 100), shown);
        }
        assert_eq!(printable("abcdef", 3), "abc\u{2026}");
        assert_eq!(printable("abc", 3), "abc");
    }

    #[test]
    fn counts_letters() {
        assert_eq!(distance("redis-server", "redis-server"), 0);
        assert_eq!(distance("redis-sever", "redis-server"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
