//! Use of resources by other processes, from the kernel's accounting: CPU time and memory of a process with
//! all its descendants (Pgpool-II is a hundred processes).

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::SocketAddr;

use anyhow::{Context, Result};

/// Nanoseconds on a CPU that process `pid` and its descendants have used. `/proc/PID/schedstat` of
/// each thread (Documentation/scheduler/sched-stats.rst): exact, where `/proc/PID/stat` counts
/// ticks of 10 ms. Threads that have ended are not counted.
pub fn nanoseconds(pid: u32) -> Result<u64> {
    sum_of_family(pid, process_nanoseconds)
}

fn process_nanoseconds(pid: u32) -> Option<u64> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let of_thread = |thread: fs::DirEntry| {
        // A thread may end between the two.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0)
    };
    Some(threads.filter_map(Result::ok).map(of_thread).sum())
}

/// Memory of process `pid` and its descendants, in bytes: proportional set size.
pub fn memory_bytes(pid: u32) -> Result<u64> {
    let of_process = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Ok(sum_of_family(pid, of_process)? * 1024)
}

/// Number of connections that process `pid` has to one of `servers`.
pub fn connections(pid: u32, servers: &[SocketAddr]) -> Result<usize> {
    let mut wanted: Vec<String> = Vec::new();
    for server in servers {
        let SocketAddr::V4(server) = server else { continue };
        // As in /proc/net/tcp: the address as a number in the machine's order.
        wanted.push(format!("{:08X}:{:04X}", u32::from_ne_bytes(server.ip().octets()), server.port()));
    }
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).with_context(|| format!("process {pid} is gone"))?;
    let mut sockets = HashSet::new();
    for line in table.lines() {
        // sl local remote state … inode
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let &[_, _, remote, "01", _, _, _, _, _, inode, ..] = fields.as_slice()
            && wanted.iter().any(|address| address == remote)
        {
            sockets.insert(format!("socket:[{inode}]"));
        }
    }
    let files = fs::read_dir(format!("/proc/{pid}/fd"))?.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    Ok(files.filter(|file| file.to_str().is_some_and(|name| sockets.contains(name))).count())
}

/// An error only if `pid` itself is gone: a descendant may end after it was listed.
fn sum_of_family(pid: u32, of_process: impl Fn(u32) -> Option<u64>) -> Result<u64> {
    let own = of_process(pid).with_context(|| format!("process {pid} is gone"))?;
    let others: u64 = family(pid)?.into_iter().filter(|member| *member != pid).filter_map(of_process).sum();
    Ok(own + others)
}

/// `pid` and everything descended from it.
pub fn family(pid: u32) -> Result<Vec<u32>> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(parent) = parent_of(child) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&member) = family.get(next) {
        family.extend(children.remove(&member).unwrap_or_default());
        next += 1;
    }
    Ok(family)
}

/// The fourth field of `/proc/PID/stat`; the second, the name, is in parentheses and may hold
/// anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_cpu_time_grows_and_we_have_memory() {
        let pid = std::process::id();
        let before = nanoseconds(pid).unwrap();
        let mut sum = 0_u64;
        while nanoseconds(pid).unwrap() < before + 20_000_000 {
            sum = sum.wrapping_add(std::hint::black_box(1));
        }
        assert!(sum > 0);
        assert!(memory_bytes(pid).unwrap() > 100_000);
        assert!(nanoseconds(u32::MAX).is_err());
    }

    #[test]
    fn connections_are_counted_by_where_they_lead() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let count = || connections(std::process::id(), &[at]).unwrap();
        assert_eq!(count(), 0);
        let connection = std::net::TcpStream::connect(at).unwrap();
        assert_eq!(count(), 1);
        drop(connection);
        assert_eq!(count(), 0);
    }

    #[test]
    fn children_belong_to_the_family() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let family = family(std::process::id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(family.contains(&child.id()));
    }
}
