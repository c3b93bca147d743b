//! PostgreSQL's own programs, run to their end: bounded in time and output, killed when dropped,
//! and never given anything secret in arguments.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use super::error::Error;
use super::osuser::OsUser;

/// Number of bytes that are kept of a program's output.
const OUTPUT_BYTES: usize = 1 << 20;
/// Number of bytes that are kept of its errors.
const ERROR_BYTES: usize = 4096;
/// Progress is logged at most this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// One run of a program.
pub(crate) struct Tool {
    name: &'static str,
    path: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    environment: Vec<(&'static str, std::ffi::OsString)>,
    input: Vec<u8>,
    timeout: Option<Duration>,
    silence: Option<Duration>,
    watch: Option<Watch>,
}

/// Is shown each line that a program prints to its standard error, as it comes.
pub(crate) type Watch = Box<dyn Fn(&str) + Send + Sync>;

/// Output of a program and its errors: the beginning and the end respectively.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) success: bool,
    outcome: String,
}

impl Output {
    /// The failure of `program`, with the end of what it printed.
    pub(crate) fn into_error(self, program: &'static str) -> Error {
        let said = if self.stderr.trim().is_empty() { self.stdout } else { self.stderr };
        let said: Vec<&str> = said.lines().rev().filter(|line| !line.trim().is_empty()).take(6).collect();
        let said: Vec<&str> = said.into_iter().rev().collect();
        Error::Program { program, outcome: self.outcome, output: said.join(" | ") }
    }
}

/// Ends the program's whole process group when the wait for it is dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Tool {
    /// `name` in `bin_dir`.
    pub(crate) fn new(bin_dir: &std::path::Path, name: &'static str) -> Self {
        Self {
            name,
            path: bin_dir.join(name),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: Vec::new(),
            timeout: None,
            silence: None,
            watch: None,
        }
    }

    pub(crate) fn arg(mut self, argument: impl Into<std::ffi::OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    pub(crate) fn args<S: Into<std::ffi::OsString>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<std::ffi::OsString>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// Standard input: the place for what must not be seen.
    pub(crate) fn input(mut self, text: impl Into<Vec<u8>>) -> Self {
        self.input = text.into();
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Ends it when it has not printed anything for this long: for programs that tell their progress, and take as
    /// long as there is data.
    pub(crate) fn silence(mut self, silence: Duration) -> Self {
        self.silence = Some(silence);
        self
    }

    /// Shows `watch` its progress, instead of logging that from time to time.
    pub(crate) fn watch(mut self, watch: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.watch = Some(Box::new(watch));
        self
    }

    /// Runs it; its failure is an error with the end of what it printed.
    pub(crate) async fn run(self, user: &OsUser) -> Result<Output, Error> {
        let program = self.name;
        let output = self.run_any(user).await?;
        if output.success { Ok(output) } else { Err(output.into_error(program)) }
    }

    /// Runs it; failing is an outcome. Dropping this kills the program and its children.
    pub(crate) async fn run_any(self, user: &OsUser) -> Result<Output, Error> {
        let mut command = std::process::Command::new(&self.path);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .envs(self.environment)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        user.apply(&mut command);
        // A sitter that was killed must not leave a rewind behind that writes into data which the
        // next sitter replaces.
        OsUser::die_with_parent(&mut command);
        let mut command = tokio::process::Command::from(command);
        let mut child = command.kill_on_drop(true).spawn().map_err(Error::io("run", &self.path))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let mut group = Group(pid);
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (name, input, watch) = (self.name, self.input, self.watch);
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A program that ends early closes its input; its status tells why.
                let _ = stdin.write_all(&input).await;
            }
        };
        let heard = Mutex::new(Instant::now());
        let all = async {
            let (status, (), stdout, stderr) =
                tokio::join!(child.wait(), feed, collect(stdout, &heard), follow(name, stderr, watch, &heard));
            status.map(|status| (status, stdout, stderr))
        };
        let bound = self.timeout.unwrap_or(Duration::from_secs(u32::MAX.into()));
        let timeout = Error::Timeout { what: format!("the end of {name}"), timeout: bound };
        let in_time = tokio::time::timeout(bound, all);
        // Dropping the wait ends the program.
        let ended = tokio::select! {
            ended = in_time => ended.map_err(|_| timeout)?,
            silence = too_silent(self.silence, &heard) => {
                return Err(Error::Timeout { what: format!("any progress of {name}"), timeout: silence });
            }
        };
        let (status, stdout, stderr) = ended.map_err(Error::io("wait for", &self.path))?;
        group.0 = None;
        let outcome = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "unknown".to_owned(),
        };
        Ok(Output { stdout, stderr, success: status.success(), outcome })
    }
}

/// Moment of a program's last output. Held for the moment of reading or writing it.
type Heard = Mutex<Instant>;

fn hear(heard: &Heard) {
    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Returns once nothing was heard for the bound; never, without one.
async fn too_silent(bound: Option<Duration>, heard: &Heard) -> Duration {
    let Some(bound) = bound else { return std::future::pending().await };
    loop {
        let since = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        match bound.checked_sub(since.elapsed()) {
            Some(rest) if !rest.is_zero() => tokio::time::sleep(rest).await,
            _ => return bound,
        }
    }
}

/// The beginning of what comes; the rest is read and dropped.
async fn collect(stream: Option<tokio::process::ChildStdout>, heard: &Heard) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let (mut kept, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
    while let Ok(read @ 1..) = stream.read(&mut chunk).await {
        hear(heard);
        let room = OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// The end of what comes, progress logged from time to time.
async fn follow(
    program: &'static str,
    stream: Option<tokio::process::ChildStderr>,
    watch: Option<Watch>,
    heard: &Heard,
) -> String {
    let Some(stream) = stream else { return String::new() };
    let mut lines = BufReader::new(stream);
    let mut kept = String::new();
    let mut logged = Instant::now();
    let mut line = Vec::new();
    // Progress is written with carriage returns; a "line" may therefore be long, but a program of
    // PostgreSQL's prints no more than this between two line ends.
    while let Ok(1..) = (&mut lines).take(OUTPUT_BYTES as u64).read_until(b'\n', &mut line).await {
        hear(heard);
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default().trim();
        if let Some(watch) = &watch {
            watch(text);
        } else if logged.elapsed() >= PROGRESS_EVERY && !text.is_empty() {
            logged = Instant::now();
            tracing::info!(program, progress = text, "in progress");
        }
        kept.push_str(text);
        kept.push('\n');
        if kept.len() > 2 * ERROR_BYTES {
            let mut from = kept.len() - ERROR_BYTES;
            while !kept.is_char_boundary(from) {
                from += 1;
            }
            kept.drain(..from);
        }
        line.clear();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_says_nothing_any_more_is_ended() {
        let user = OsUser::ourselves();
        let shell = || Tool::new(std::path::Path::new("/bin"), "sh").arg("-c");
        let silent = shell().arg("echo begun >&2; sleep 600").silence(Duration::from_millis(300)).run(&user).await;
        assert!(matches!(&silent, Err(Error::Timeout { what, .. }) if what.contains("progress of sh")), "{silent:?}");
        let slow = "for n in 1 2 3 4 5 6; do echo $n >&2; sleep 0.1; done";
        shell().arg(slow).silence(Duration::from_secs(20)).run(&user).await.expect("it goes on");
    }
}
