//! `hawser reasons`: what the words mean that access logs, metrics and refusals say.

use anyhow::{Context as _, Result};
use hawser_core::reason::Reason;

use super::output;

/// A word to explain; without one, all are listed.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As the access log's `reason` and the header `x-hawser-reason` say it.
    word: Option<String>,
}

/// Prints the list, or the section of one word.
///
/// # Errors
/// A word that is no reason.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.word {
        None => output::print(&list()),
        Some(word) => output::print(&explain(word)?),
    }
}

fn list() -> String {
    let width = Reason::ALL.iter().map(|reason| reason.as_str().len()).max().unwrap_or_default();
    let line = |reason: &Reason| format!("{:width$}  {}\n", reason.as_str(), reason.doc().trim());
    Reason::ALL.iter().map(line).collect()
}

fn explain(word: &str) -> Result<String> {
    let reason: Reason = word
        .trim()
        .parse()
        .with_context(|| format!("{word:?}: `hawser reasons` lists those that there are"))?;
    let heading = format!("## `{reason}`\n\n");
    let (_, section) = PAGE.split_once(&heading).context("the page lacks it")?;
    let section = section.split("\n## ").next().unwrap_or(section);
    Ok(format!("{reason}\n\n{}\n", section.trim_end()))
}

const PAGE: &str = include_str!("../../docs/reasons.md");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_listed_and_explained() {
        let list = list();
        for reason in Reason::ALL {
            assert!(list.contains(&format!("{reason}  ")), "{reason}");
            let text = explain(reason.as_str()).expect("it has a section");
            assert!(text.contains(reason.doc().trim()), "{text}");
            assert!(text.contains("*What to do:*") && !text.contains("##"), "{text}");
        }
        let refused = explain("nonsense").expect_err("no reason");
        assert!(format!("{refused:#}").contains("hawser reasons"), "{refused:#}");
    }
}
