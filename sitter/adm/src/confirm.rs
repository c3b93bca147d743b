//! Asking an operator before something that is not easily undone.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::bail;

/// Ok if `yes` was given, or an operator at a terminal agrees to `question`.
pub(super) fn confirm(yes: bool, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("nobody is there to be asked; to go ahead, give --yes. {question}");
    }
    eprint!("{question}\nGo ahead? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was changed"),
    }
}
