//! When two services of a run are the same one.

use crate::readiness::Readiness;
use crate::recipe::builder::ExecutorBuilder;

/// All that makes two services the same one. Ports and directories that are chosen at the start are
/// still placeholders here.
pub(super) fn key_text<R: Readiness>(name: &str, kind: &str, recipe: &ExecutorBuilder<R>) -> String {
    let mut text = format!(
        "{name}\n{}\n{}\n{:?}\n{}\n{:?}\n",
        without_paths(kind),
        without_paths(std::any::type_name::<R>()),
        recipe.spec,
        recipe.readiness.describe(),
        std::env::current_dir().ok(),
    );
    // A file is the same one whatever number it has in this process.
    while let Some((before, after)) = text.split_once("File { fd: ") {
        let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
        text = format!("{before}File {{ {after}");
    }
    // What `{env:VAR}` stands for is a part of the recipe.
    let variables: Vec<String> = text
        .split("{env:")
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .map(|(variable, _)| format!("{variable}={:?}\n", std::env::var_os(variable)))
        .collect();
    text.extend(variables);
    text
}

/// The name of a type without those of its modules: what is in a file that many test binaries
/// include is in another crate in each.
fn without_paths(name: &str) -> String {
    let mut short = String::new();
    let mut word = String::new();
    for char in name.chars() {
        match char {
            ':' => word.clear(),
            char if char.is_alphanumeric() || char == '_' => word.push(char),
            char => {
                short.push_str(&word);
                word.clear();
                short.push(char);
            }
        }
    }
    short + &word
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::executor::Executor;

    #[test]
    fn the_key_is_the_recipe_and_the_name() {
        let key = |name: &str, recipe: &ExecutorBuilder<crate::readiness::no_wait::NoWait>| {
            key_text(name, "", recipe)
        };
        let recipe = || Executor::builder("server --port {port}");
        assert_eq!(key("A", &recipe()), key("A", &recipe()));
        assert_ne!(key("A", &recipe()), key("B", &recipe()));
        assert_ne!(key("A", &recipe()), key("A", &recipe().arg("-v")));
        assert_ne!(key("A", &recipe()), key("A", &recipe().env("X", "1")));
        assert_ne!(key("A", &recipe()), key_text("A", "presets::Server", &recipe()));
        let with_path = key("A", &recipe().arg("{env:PATH}"));
        assert!(with_path.contains("PATH=Some("), "{with_path}");
        let file = || File::open("/dev/null").expect("it is always there");
        let (one, other) = (file(), file());
        assert_eq!(key("A", &recipe().stdin(one)), key("A", &recipe().stdin(other)));
        let other = File::open("/dev/zero").expect("it is always there");
        assert_ne!(
            key("A", &recipe().stdin(file())),
            key("A", &recipe().stdin(other))
        );
    }

    #[test]
    fn types_are_known_without_their_crates() {
        assert_eq!(
            without_paths("core::And<first::common::Ready, core::Tcp>"),
            without_paths("core::And<second::common::Ready, core::Tcp>")
        );
        assert_eq!(without_paths("a::B<(c::D, &[e::F; 3])>"), "B<(D, &[F; 3])>");
        assert_eq!(without_paths("fn(a::b::C) -> u8"), "fn(C) -> u8");
    }
}
