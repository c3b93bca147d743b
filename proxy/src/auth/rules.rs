//! Reading files of login rules.

use std::path::{Path, PathBuf};

/// Reason why a file of rules cannot be used. One line.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It cannot be read.
    #[error("{path}: cannot be read: {source}")]
    Read {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A line is not understood.
    #[error("{path}:{line}: {problem}")]
    Line {
        /// File.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Problem, and the remedy.
        problem: String,
    },
}

/// Result of `parse` for the file; the default without one.
pub(super) fn load<T: Default>(
    path: Option<&Path>,
    parse: impl FnOnce(&str) -> Result<T, (usize, String)>,
) -> Result<T, RulesError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read_to_string(path).map_err(|source| RulesError::Read { path: path.to_owned(), source })?;
    parse(&text).map_err(|(line, problem)| RulesError::Line { path: path.to_owned(), line, problem })
}
