//! `manatee-relay`: passes bytes between a listening address and a target, and looks at none. The
//! floor for what a proxy of this make can cost: the same runtime, the same threads, the same
//! sockets, and nothing else.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use clap::Parser;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// Passes bytes on, both ways, and looks at none
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Address for clients
    listen: SocketAddr,
    /// Address they are led to
    target: SocketAddr,
    /// Threads, each with a runtime and connections of its own; 0: one per core, as the proxy
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

/// Read at once: as in the proxy.
const CHUNK_BYTES: usize = 16 << 10;

fn main() -> Result<()> {
    let Arguments { listen, target, threads } = Arguments::parse();
    let listener = std::net::TcpListener::bind(listen)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let count = if threads == 0 { cores } else { threads };
    let mut senders = Vec::new();
    for _ in 0..count {
        let (sender, mut arrivals) = tokio::sync::mpsc::channel::<std::net::TcpStream>(1024);
        senders.push(sender);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async move {
                while let Some(client) = arrivals.recv().await {
                    tokio::spawn(async move {
                        // However it ends, both connections are closed.
                        let _ = relay(client, target).await;
                    });
                }
            });
        });
    }
    for (number, client) in listener.incoming().enumerate() {
        let client = client?;
        client.set_nonblocking(true)?;
        senders[number % count].blocking_send(client)?;
    }
    Ok(())
}

async fn relay(client: std::net::TcpStream, target: SocketAddr) -> io::Result<()> {
    let client = TcpStream::from_std(client)?;
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let mut ends = (client, server);
    let mut forth = Pipe::default();
    let mut back = Pipe::default();
    std::future::poll_fn(|cx| {
        let (client, server) = (&mut ends.0, &mut ends.1);
        if forth.poll(client, server, cx).is_ready() || back.poll(server, client, cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    Ok(())
}

/// One direction. Ready when it is over.
#[derive(Default)]
struct Pipe {
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Pipe {
    fn poll(&mut self, from: &mut TcpStream, to: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        self.buffer.resize(CHUNK_BYTES, 0);
        loop {
            while self.begin < self.end {
                match Pin::new(&mut *to).poll_write(cx, &self.buffer[self.begin..self.end]) {
                    Poll::Ready(Ok(written)) => self.begin += written,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
            let mut room = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => (self.begin, self.end) = (0, room.filled().len()),
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
