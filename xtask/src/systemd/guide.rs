//! Guides in docs/ as something that can be done: their blocks, and which host each is for.

use anyhow::{Result, ensure};

/// One fenced block that is for hosts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Block {
    /// The heading that it stands below.
    pub(super) heading: String,
    /// The hosts, or roles of hosts, that it is for.
    pub(super) hosts: Vec<String>,
    /// The file that it is the text of; commands have none.
    pub(super) file: Option<String>,
    /// The text.
    pub(super) text: String,
}

/// The blocks of a guide, in order. A fence says after its language which hosts it is for, and then
/// the file it is, if it is one: ` ```hcl web-1 /etc/hawser/agent.d/web.hcl`. What names no host is
/// only shown.
///
/// # Errors
/// Commands that name no host, as nobody would run them, or a fence that does not end.
pub(super) fn blocks(guide: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("## ") {
            text.clone_into(&mut heading);
        }
        let Some(info) = line.strip_prefix("```") else { continue };
        let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let mut words = info.split_whitespace();
        let language = words.next().unwrap_or_default();
        let (files, hosts): (Vec<_>, Vec<_>) = words.partition(|word| word.starts_with('/'));
        ensure!(language != "sh" || !hosts.is_empty(), "{heading}: {inside:?} names no host");
        if !hosts.is_empty() {
            blocks.push(Block {
                heading: heading.clone(),
                hosts: hosts.into_iter().map(str::to_owned).collect(),
                file: files.first().map(|file| (*file).to_owned()),
                text: inside.join("\n") + "\n",
            });
        }
    }
    Ok(blocks)
}

/// Whether a command asks for something that comes about by itself after a moment.
pub(super) fn is_question(command: &str) -> bool {
    ["curl ", "dig ", "getent ", "resolvectl query "].iter().any(|asks| command.starts_with(asks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_say_where_they_are_for() {
        let guide = "# G\n## 1. One\n```sh a b\nx\ny\n```\n```hcl a /etc/f\nk = 1\n```\n\
                     ## Two\n```ini\nz\n```\n";
        let block = |hosts: &[&str], file: Option<&str>, text: &str| Block {
            heading: "1. One".to_owned(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            file: file.map(str::to_owned),
            text: text.to_owned(),
        };
        let expected =
            [block(&["a", "b"], None, "x\ny\n"), block(&["a"], Some("/etc/f"), "k = 1\n")];
        assert_eq!(blocks(guide).expect("a good guide"), expected);
    }

    #[test]
    fn the_guide_for_vms_counts_its_steps() {
        let guide = include_str!("../../../docs/vm.md");
        let blocks = blocks(guide).expect("a good guide");
        let is_step = |heading: &str| heading.starts_with(|start: char| start.is_ascii_digit());
        let steps =
            guide.lines().filter_map(|line| line.strip_prefix("## ")).filter(|h| is_step(h));
        let commands =
            blocks.iter().filter(|block| block.file.is_none() && is_step(&block.heading));
        let to_the_call = commands
            .filter(|block| block.heading.as_str() < "8")
            .map(|block| block.text.lines().count() * block.hosts.len());
        let files = blocks.iter().filter(|block| block.file.is_some()).count();
        let counted = (steps.count(), to_the_call.sum::<usize>(), files);
        assert_eq!(counted, (9, 15, 3));
        let stated = "in nine steps; the call is made in the seventh, after\nthree files and as the fifteenth";
        assert!(guide.contains(stated));
    }

    #[test]
    fn a_command_that_nobody_runs_is_refused() {
        assert!(blocks("## A\n```sh\nrm x\n```\n").is_err());
    }
}
