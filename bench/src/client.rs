//! The bench's own clients: they keep their SCRAM keys, so that thousands log in without the
//! bench being what is measured.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use manatee_proxy::auth::{Secret, nonce};
use manatee_proxy::wire::scram::{Channel, ClientExchange, Credential, MECHANISM};
use manatee_proxy::wire::startup::{VERSION_3_0, encode_password, encode_sasl_initial, encode_startup};
use manatee_proxy::wire::{HEADER_BYTES, backend, complete, frontend};
use manatee_tests::lab::APP;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest time for a login, or an answer.
const LIMIT: Duration = Duration::from_secs(60);

/// Account and address of a login.
#[derive(Clone, Debug)]
pub struct Dialer {
    address: SocketAddr,
    secret: Secret,
}

impl Dialer {
    /// [`APP`] at `address`.
    pub fn new(address: SocketAddr, secret: Secret) -> Self {
        Self { address, secret }
    }

    /// Logs in, by SCRAM where that is asked for.
    pub async fn connect(&self) -> Result<Connection> {
        tokio::time::timeout(LIMIT, self.log_in()).await.context("no answer to a login")?
    }

    async fn log_in(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut client = Connection { stream, rx: BytesMut::new() };
        let (mut first, mut proved) = (None, None);
        let mut out = BytesMut::new();
        encode_startup(&mut out, APP, APP, &[]);
        // As most drivers ask, and as PgBouncer understands it: its old versions close on a minor they do not know.
        out[4..8].copy_from_slice(&VERSION_3_0.to_be_bytes());
        loop {
            client.stream.write_all(&out).await?;
            out.clear();
            let (tag, mut body) = client.message().await?;
            match tag {
                backend::READY_FOR_QUERY => {
                    client.rx = BytesMut::new();
                    return Ok(client);
                }
                backend::ERROR_RESPONSE => bail!("the server said: {}", String::from_utf8_lossy(&body)),
                b'R' => ensure!(body.len() >= 4, "an authentication request is cut off"),
                _ => continue,
            }
            // AuthenticationOk, …SASL, …SASLContinue, …SASLFinal (manual, section 55.7).
            match body.get_u32() {
                0 => {}
                10 => {
                    let (exchange, message) = ClientExchange::begin(&nonce()?, Channel::Unbound);
                    encode_sasl_initial(&mut out, MECHANISM, message.as_bytes());
                    first = Some(exchange);
                }
                11 => {
                    let exchange = first.take().context("SCRAM goes on without having begun")?;
                    let (proof, message) = exchange.prove(&body, &self.credential()?)?;
                    encode_password(&mut out, message.as_bytes());
                    proved = Some(proof);
                }
                12 => proved.take().context("SCRAM ends without having begun")?.verify(&body)?,
                other => bail!("authentication request {other} is not known here"),
            }
        }
    }

    fn credential(&self) -> Result<Credential<'_>> {
        match &self.secret {
            Secret::Scram { client_key, server_key } => Ok(Credential::Keys { client_key, server_key }),
            Secret::Password(password) => Ok(Credential::Password(password)),
            _ => Err(anyhow!("neither a password nor keys")),
        }
    }
}

/// A logged-in client.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    rx: BytesMut,
}

impl Connection {
    /// Runs `sql` by the simple protocol; the rows are thrown away. Keeps no buffer afterwards.
    pub async fn query(&mut self, sql: &str) -> Result<()> {
        let mut request = BytesMut::with_capacity(sql.len() + 6);
        frontend::put_query(&mut request, sql.as_bytes());
        tokio::time::timeout(LIMIT, self.talk(&request)).await.context("no answer")?
    }

    /// Sends complete messages and reads up to ReadyForQuery.
    pub async fn talk(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await?;
        let mut failure = None;
        loop {
            while let Some((header, body)) = complete(&self.rx)? {
                match header.tag {
                    backend::ERROR_RESPONSE => failure = Some(String::from_utf8_lossy(body).into_owned()),
                    backend::READY_FOR_QUERY => {
                        self.rx = BytesMut::new();
                        return match failure {
                            None => Ok(()),
                            Some(words) => bail!("the server said: {words}"),
                        };
                    }
                    _ => {}
                }
                self.rx.advance(header.size);
            }
            if self.stream.read_buf(&mut self.rx).await? == 0 {
                bail!("the connection was closed: {failure:?}");
            }
        }
    }

    /// The next message: tag and body.
    async fn message(&mut self) -> Result<(u8, Bytes)> {
        loop {
            if let Some(header) = complete(&self.rx)?.map(|(header, _)| header) {
                let mut message = self.rx.split_to(header.size).freeze();
                message.advance(HEADER_BYTES);
                return Ok((header.tag, message));
            }
            ensure!(self.stream.read_buf(&mut self.rx).await? > 0, "the connection was closed");
        }
    }

    /// Leaves politely, so that a pool keeps the server.
    pub async fn leave(mut self) -> Result<()> {
        let mut request = BytesMut::new();
        frontend::put_empty(&mut request, frontend::TERMINATE);
        self.stream.write_all(&request).await?;
        Ok(())
    }
}
