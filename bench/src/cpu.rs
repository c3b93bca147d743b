//! CPU time of another process, from the kernel's accounting.

use anyhow::{Context, Result};

/// CPU seconds (user and system, all threads) that process `pid` has used so far: fields 14 and 15
/// of `/proc/PID/stat` (proc(5)), in clock ticks. Resolution: one tick, usually 10 ms.
pub fn seconds_used(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}: is the process there?"))?;
    // The command name, field 2, is in parentheses and may hold anything; count from its end.
    let after_name = stat.rsplit_once(')').map(|(_, rest)| rest).with_context(|| format!("{path} is malformed"))?;
    let ticks: Vec<u64> =
        after_name.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>().context(path)?;
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok(ticks.iter().sum::<u64>() as f64 / per_second as f64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_cpu_time_grows() {
        let pid = std::process::id();
        let before = super::seconds_used(pid).unwrap();
        let mut sum = 0_u64;
        while super::seconds_used(pid).unwrap() < before + 0.02 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(sum > 0);
    }
}
