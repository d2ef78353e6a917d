//! One table for all figures, in Markdown.

/// A line of the table. `None` where there is nothing to say.
pub(crate) struct Row {
    pub(crate) figure: String,
    /// What mirakuru takes.
    pub(crate) ours: f64,
    /// What it is compared with, in the same run: what that is, and what it takes.
    pub(crate) beside: Option<(String, f64)>,
    pub(crate) unit: &'static str,
    /// In words, and whether it is met.
    pub(crate) target: Option<(String, bool)>,
}

/// Prints the rows under one head.
pub(crate) fn print(rows: &[Row]) {
    let mut cells = vec![
        ["figure", "mirakuru", "beside it", "takes", "ratio", "target", ""].map(str::to_owned),
        ["---", "---:", "---", "---:", "---:", "---", "---"].map(str::to_owned),
    ];
    for row in rows {
        let (what, takes, ratio) = match &row.beside {
            // A ratio to next to nothing says nothing.
            Some((what, takes)) if *takes < 0.01 => (what.as_str(), number(*takes), String::new()),
            Some((what, takes)) => (what.as_str(), number(*takes), format!("{:.2}", row.ours / takes)),
            None => ("", String::new(), String::new()),
        };
        let (target, met) = match &row.target {
            Some((target, true)) => (target.as_str(), "met"),
            Some((target, false)) => (target.as_str(), "**missed**"),
            None => ("", ""),
        };
        cells.push([
            row.figure.clone(),
            format!("{} {}", number(row.ours), row.unit),
            what.to_owned(),
            takes,
            ratio,
            target.to_owned(),
            met.to_owned(),
        ]);
    }
    let widths: Vec<usize> = (0..cells[0].len())
        .map(|column| {
            cells
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in &cells {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"))
            .collect();
        println!("| {} |", line.join(" | "));
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}
