//! Makes text of other programs displayable.

use std::borrow::Cow;
use std::ops::RangeInclusive;

/// Makes a line of another program displayable. Removes escape sequences, replaces control
/// characters and characters that change the writing direction, and truncates the line to `limit`
/// characters, followed by an ellipsis. If carriage returns overwrite the line, the result is the
/// text that a terminal would finally show.
pub(crate) fn printable(line: &str, limit: usize) -> String {
    let plain = plain(line.as_bytes());
    let mut shown = String::new();
    for (count, c) in String::from_utf8_lossy(&plain).chars().enumerate() {
        if count == limit {
            shown.push('\u{2026}');
            break;
        }
        shown.push(match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            c => c,
        });
    }
    shown
}

const ESCAPE: u8 = 0x1b;
const BELL: u8 = 7;
/// These two bytes select a character set. Some terminals end bold text with `ESC [ m SI`.
const SHIFT_OUT: u8 = 0x0e;
const SHIFT_IN: u8 = 0x0f;

/// Returns a line as a terminal shows it: without escape sequences, and without the text that was
/// overwritten after a carriage return.
pub(crate) fn plain(line: &[u8]) -> Cow<'_, [u8]> {
    let line = match line.contains(&b'\r') {
        true => line
            .rsplit(|byte| *byte == b'\r')
            .find(|part| !part.is_empty())
            .unwrap_or_default(),
        false => line,
    };
    let is_silent = |byte: &u8| matches!(*byte, BELL | SHIFT_OUT | SHIFT_IN);
    if !line.iter().any(|byte| *byte == ESCAPE || is_silent(byte)) {
        return Cow::Borrowed(line);
    }
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.iter().position(|byte| *byte == ESCAPE) {
        plain.extend_from_slice(&rest[..at]);
        rest = after_escape(&rest[at + 1..]);
    }
    plain.extend_from_slice(rest);
    plain.retain(|byte| !is_silent(byte));
    Cow::Owned(plain)
}

/// Skips an escape sequence, whose first byte has already been removed, and returns the rest.
fn after_escape(text: &[u8]) -> &[u8] {
    /// Skips the bytes in the range at the beginning of the text.
    fn skip(text: &[u8], range: RangeInclusive<u8>) -> &[u8] {
        let skipped = text.iter().take_while(|byte| range.contains(byte)).count();
        &text[skipped..]
    }
    match text {
        // A control sequence: parameters, then one final byte.
        [b'[', text @ ..] => match skip(text, 0x20..=0x3f) {
            [0x40..=0x7e, text @ ..] | text => text,
        },
        // A string for the terminal, such as a title or a link. It is terminated by BEL or `ESC \`.
        [b']' | b'P' | b'X' | b'^' | b'_', text @ ..] => {
            let end = text.iter().position(|byte| matches!(*byte, BELL | ESCAPE));
            match end.map_or(&text[text.len()..], |end| &text[end..]) {
                [ESCAPE, b'\\', text @ ..] | [_, text @ ..] | text => text,
            }
        }
        // Any other sequence: intermediate bytes, if any, and one final byte.
        text => match skip(text, 0x20..=0x2f) {
            [0..0x80, text @ ..] | text => text,
        },
    }
}

/// The edit distance: how many letters must be added, removed or replaced to turn `a` into `b`.
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

/// The smallest [`distance`] between `text` and any part of `other`.
pub(crate) fn distance_within(text: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    // Like `distance`, except that a match may begin and end anywhere in `other`.
    let mut row = vec![0; other.len() + 1];
    for (i, letter) in text.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, found) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *found);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.into_iter().min().unwrap_or_default()
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
            ("\u{e}\u{1b}[1mready\u{1b}[m\u{f}\u{7}", "ready"),
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
        assert_eq!(distance_within("kitten", "two sittings"), 2);
        assert_eq!(distance_within("abc", ""), 3);
    }
}
