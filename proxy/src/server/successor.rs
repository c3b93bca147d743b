//! Hand-over to a new process that this one starts itself (SIGUSR2).
//!
//! Under a service manager nobody else can start the successor: it has to live in the service's control group, and to
//! become its main process (sd_notify(3), `MAINPID=`), or `Restart=` would start a third one. The successor runs the
//! program that lies at this program's path *now*, with the arguments of this one, so that it is also the upgrade.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};

/// Longest that the new program may take to read and check the configuration.
const CHECK_LIMIT: Duration = Duration::from_secs(20);
/// Longest that the successor may take until it waits for the listeners: it does nothing before but read files.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Interval of looking whether it does.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The argument by which a process takes listeners over.
const TAKE_OVER: &str = "--upgrade";

/// Command line of the successor.
#[derive(Clone, Debug)]
pub(super) struct Successor {
    program: PathBuf,
    arguments: Vec<OsString>,
    socket: PathBuf,
}

/// Reason why there is no hand-over; this process goes on serving.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandOverError {
    /// The program cannot be run.
    #[error("cannot run {}: {source}", program.display())]
    Run {
        /// Its path.
        program: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It refuses the configuration.
    #[error("the new program refuses the configuration: {0}")]
    Refused(String),
    /// It ended before it could take anything over.
    #[error("the successor ended before the hand-over ({0}); its own message is above in the log")]
    Ended(ExitStatus),
    /// It does not come to the hand-over.
    #[error("the successor was not ready for the listeners within {0:?}")]
    Late(Duration),
}

impl Successor {
    /// Of this process. To be called at start: once the program's file has been replaced, the system does not tell
    /// its path any more (proc(5), `/proc/pid/exe`).
    ///
    /// # Errors
    /// When the system does not tell the path of this program.
    pub(super) fn of_this_process(socket: &Path) -> io::Result<Self> {
        let arguments = std::env::args_os().skip(1).filter(|argument| argument != TAKE_OVER).collect();
        Ok(Self { program: std::env::current_exe()?, arguments, socket: socket.to_owned() })
    }

    /// Starts it and waits until it waits for the listeners. It lives on when this process ends.
    ///
    /// # Errors
    /// [`HandOverError`]; nothing has changed then.
    pub(super) async fn start(&self) -> Result<Child, HandOverError> {
        self.check().await?;
        // One that an earlier hand-over left would look like a successor that waits.
        let _ = std::fs::remove_file(&self.socket);
        let mut child = self.command().arg(TAKE_OVER).spawn().map_err(|source| self.cannot_run(source))?;
        // Cancel-safe: only time passes while it is waited for.
        let ready = async {
            while !self.socket.exists() {
                match child.try_wait() {
                    Ok(Some(status)) => return Err(HandOverError::Ended(status)),
                    Ok(None) => tokio::time::sleep(LOOK_INTERVAL).await,
                    Err(source) => return Err(self.cannot_run(source)),
                }
            }
            Ok(())
        };
        match tokio::time::timeout(START_LIMIT, ready).await {
            Ok(Ok(())) => Ok(child),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let _ = child.kill().await;
                Err(HandOverError::Late(START_LIMIT))
            }
        }
    }

    /// Lets the new program check the configuration, so that a mistake costs nothing.
    async fn check(&self) -> Result<(), HandOverError> {
        let check = self.command().arg("--check-config").stdout(Stdio::null()).stderr(Stdio::piped()).output();
        let output = tokio::time::timeout(CHECK_LIMIT, check)
            .await
            .map_err(|_| HandOverError::Late(CHECK_LIMIT))?
            .map_err(|source| self.cannot_run(source))?;
        if output.status.success() {
            return Ok(());
        }
        Err(HandOverError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::null());
        command
    }

    fn cannot_run(&self, source: io::Error) -> HandOverError {
        HandOverError::Run { program: self.program.clone(), source }
    }
}
