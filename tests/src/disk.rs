//! A small file system of a host's own, which can be full, hang or fail.
//!
//! An ext4 file system in a file, because it can be frozen (`fsfreeze`: whatever writes hangs in the
//! kernel) and can be told that it is broken (it turns read-only at once, whoever has files open).

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FallocateFlags, fallocate};

/// Room for a few data directories set aside, and little enough to be filled in no time.
const SIZE_BYTES: u64 = 1 << 30;
/// Smallest piece by which a disk is filled.
const PIECE_BYTES: i64 = 4096;

/// A mounted file system. Unmounted when dropped.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    broken: bool,
}

impl Disk {
    /// Makes one in the file `image` and mounts it at `mount`, an empty folder.
    pub fn create(image: &Path, mount: &Path) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("file systems of the hosts' own need root");
        }
        File::create(image)?.set_len(SIZE_BYTES)?;
        run("mkfs.ext4", &["-q", "-F", "-m", "0", text(image)?])?;
        let disk = Self { image: image.to_owned(), mount: mount.to_owned(), broken: false };
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<()> {
        run("mount", &["-o", "loop,errors=remount-ro", text(&self.image)?, text(&self.mount)?])
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }

    /// Takes all space that is left.
    pub fn fill(&self) -> Result<()> {
        let ballast = File::options().create(true).append(true).open(self.ballast())?;
        let mut size = ballast.metadata()?.len().cast_signed();
        let mut piece = SIZE_BYTES.cast_signed();
        while piece >= PIECE_BYTES {
            match fallocate(&ballast, FallocateFlags::empty(), size, piece) {
                Ok(()) => size += piece,
                Err(nix::errno::Errno::ENOSPC) => piece /= 2,
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
        Ok(())
    }

    /// Freezes the disk: every write and flush hangs from now on.
    pub fn freeze(&self) -> Result<()> {
        run("fsfreeze", &["--freeze", text(&self.mount)?])
    }

    /// Thaws the disk: everything that hung goes on.
    pub fn thaw(&self) -> Result<()> {
        run("fsfreeze", &["--unfreeze", text(&self.mount)?])
    }

    /// An error of the device: every write fails from now on.
    pub fn fail(&mut self) -> Result<()> {
        let source = fs::read_to_string("/proc/self/mountinfo")?
            .lines()
            .find(|line| line.split(' ').nth(4) == self.mount.to_str())
            .and_then(|line| Some(line.split_once(" - ")?.1.split(' ').nth(1)?.rsplit_once('/')?.1.to_owned()))
            .context("the disk is not mounted")?;
        let trigger = format!("/sys/fs/ext4/{source}/trigger_fs_error");
        fs::write(&trigger, "1").with_context(|| format!("cannot write {trigger}"))?;
        self.broken = true;
        Ok(())
    }

    /// Whether only [`Self::repair`] helps.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Gives the space back, and lets what hung go on.
    pub fn relieve(&self) -> Result<()> {
        // Not frozen: that is as good.
        let _ = self.thaw();
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("cannot free the disk"),
            _ => Ok(()),
        }
    }

    /// Checks the file system and mounts it again. Nothing may use it.
    pub fn repair(&mut self) -> Result<()> {
        run("umount", &[text(&self.mount)?])?;
        // Its exit code says whether anything was corrected.
        let _ = Command::new("e2fsck").arg("-fy").arg(&self.image).output();
        self.mount()?;
        self.broken = false;
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mount);
    }
}

/// Unmounts everything below `folder`, whatever its condition: of a dead lab.
pub fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    below.filter(|mount| mount.starts_with(folder) && *mount != folder).for_each(unmount);
}

fn unmount(mount: &Path) {
    let Ok(folder) = File::open(mount) else { return };
    // FITHAW: fails if it is not frozen.
    // SAFETY: FITHAW takes no argument.
    let _ = unsafe { nix::libc::ioctl(folder.as_raw_fd(), FITHAW, 0) };
    drop(folder);
    // Lazily: whatever still hangs in it must not keep it.
    let _ = Command::new("umount").arg("--lazy").arg(mount).output();
}

/// `_IOWR('X', 120, int)` of linux/fs.h.
const FITHAW: nix::libc::c_ulong = 0xC004_5878;

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not text", path.display()))
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
