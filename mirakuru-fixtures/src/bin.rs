//! Programs of the user's own package, whose paths cargo tells.

/// A command for this path. Braces in the path are the path's own: what would be read as a
/// placeholder is doubled.
pub fn bin(path: &str) -> [String; 1] {
    [escape(path)]
}

/// The text from which the expansion of placeholders makes this one.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(brace) = rest.find('{') {
        let (before, from_brace) = rest.split_at(brace);
        escaped.push_str(before);
        match placeholder(from_brace) {
            Some(length) if !escaped.ends_with('$') => {
                let (found, after) = from_brace.split_at(length);
                escaped.extend(["{", found, "}"]);
                rest = after;
            }
            _ => {
                escaped.push('{');
                rest = &from_brace[1..];
            }
        }
    }
    escaped + rest
}

/// The length of what begins with this brace, if mirakuru-core takes it for a placeholder.
fn placeholder(text: &str) -> Option<usize> {
    let inside = &text[1..];
    let length = inside
        .find(['{', '}'])
        .filter(|&end| inside[end..].starts_with('}'))?;
    let (word, argument) = match inside[..length].split_once(':') {
        Some((word, argument)) => (word, Some(argument)),
        None => (&inside[..length], None),
    };
    let is_word = word.starts_with(|first: char| first.is_ascii_lowercase())
        && word
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let is_argument = |argument: &str| {
        !argument.is_empty()
            && !argument.contains(|char: char| char.is_ascii_whitespace() || "'\"".contains(char))
    };
    (is_word && argument.is_none_or(is_argument)).then_some(length + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_placeholder_is_doubled() {
        assert_eq!(bin("/a/b"), ["/a/b"]);
        assert_eq!(escape("/{port}/x"), "/{{port}}/x");
        assert_eq!(escape("/{env:A}{x}"), "/{{env:A}}{{x}}");
        assert_eq!(escape("/{{port}}"), "/{{{port}}}");
    }

    #[test]
    fn other_braces_are_left_alone() {
        for path in ["/{}/{A}/{a b}/{1}/{a:}/{a:b c}/${port}/}{", "/{port", "/ü{ü}"] {
            assert_eq!(escape(path), path);
        }
    }
}
