//! Prints Markdown tables that can also be read as plain text.

use std::time::Duration;

/// The layout of columns.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Align {
    /// The first column is text, the others are numbers.
    NumbersRight,
    Left,
}

/// Prints a table. The first row is its head.
pub(crate) fn print(rows: &[Vec<String>], align: Align) {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
            .max(4)
    };
    let right = |column: usize| column > 0 && align == Align::NumbersRight;
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = width(column);
            if right(column) {
                format!(" {cell:>width$} |")
            } else {
                format!(" {cell:<width$} |")
            }
        });
        println!("|{}", cells.collect::<String>());
        if number == 0 {
            let rule = (0..row.len()).map(|column| {
                let dashes = "-".repeat(width(column));
                let colon = if right(column) { ":" } else { " " };
                format!(" {dashes}{colon}|")
            });
            println!("|{}", rule.collect::<String>());
        }
    }
}

/// Formats a number with two decimals, or with none from 100 on.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// Adds to a target in words whether it was met.
pub(crate) fn target(words: &str, met: bool) -> String {
    let result = if met { "met" } else { "**missed**" };
    format!("{words}: {result}")
}

/// Describes the machine, and says how long the benchmark took.
pub(crate) fn foot(took: Duration) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("an unknown processor", |model| {
            model.trim_start_matches(['\t', ' ', ':'])
        });
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Medians, in {:.0} s, on {cores} cores of {model}",
        took.as_secs_f64()
    )
}
