//! What client commands print: tables for people, JSON for scripts, all through one writer.

use std::io::{self, Write as _};

use anyhow::{Context, Result};
use serde::Serialize;

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    #[value(alias = "table")]
    Pretty,
    /// For scripts: the API's own answer.
    Json,
}

/// The option that chooses the format.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Formatted {
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Formatted {
    /// Prints `value`, for people as `pretty` words it.
    ///
    /// # Errors
    /// Standard output that cannot be written.
    pub(crate) fn print<T: Serialize>(
        self,
        value: &T,
        pretty: impl FnOnce(&T) -> String,
    ) -> Result<()> {
        match self.format {
            Format::Pretty => print(&pretty(value)),
            Format::Json => print_json(value),
        }
    }
}

/// Prints `value` as indented JSON.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("writing JSON")?;
    text.push('\n');
    print(&text)
}

/// Prints `text`. A reader that has seen enough, as `head` has, is no error.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn print(text: &str) -> Result<()> {
    print_octets(text.as_bytes())
}

/// As [`print()`], for values that need be no text.
///
/// # Errors
/// Standard output that cannot be written.
pub(crate) fn print_octets(octets: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(octets).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// Rows in aligned columns.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings and no rows.
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.map(visible).to_vec());
    }

    /// The table as lines: two spaces between columns, none at the end of a line.
    pub(crate) fn into_text(self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = width - cell.chars().count();
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', padding + GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// `text` with control characters written out: what others put into the catalog must not steer
/// the terminal of who reads it.
pub(crate) fn visible(text: &str) -> String {
    let mut seen = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            seen.extend(character.escape_default());
        } else {
            seen.push(character);
        }
    }
    seen
}

/// Pairs as `key=value`, comma-separated.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let written: Vec<String> =
        pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    written.join(",")
}

const GAP: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let mut table = Table::new(["Node", "Address", "DC"]);
        table.row(["vm-1", "10.0.0.1", "dc1"]);
        table.row(["débian", "", ""]);
        let expected = "Node    Address   DC\nvm-1    10.0.0.1  dc1\ndébian\n";
        assert_eq!(table.into_text(), expected);
    }

    #[test]
    fn nobody_steers_the_terminal_through_the_catalog() {
        let mut table = Table::new(["Tag"]);
        table.row(["\u{1b}[2Jgone\nforged row\u{9b}x"]);
        assert_eq!(table.into_text(), "Tag\n\\u{1b}[2Jgone\\nforged row\\u{9b}x\n");
    }
}
