//! Where the HTTP API is reached: TCP, TLS over TCP, and a Unix socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::config::{Https, Listeners, Shown, UnixSocket};
use crate::{Sockets, StartError};

/// A socket that was bound, before a runtime waits on it.
#[derive(Debug)]
pub(crate) enum Bound {
    Tcp(std::net::TcpListener),
    Tls(std::net::TcpListener, watch::Receiver<Arc<ServerConfig>>),
    Unix(std::os::unix::net::UnixListener),
}

impl Bound {
    /// The same socket, for another process to take up.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(listener.try_clone()?),
            Self::Tls(listener, config) => Self::Tls(listener.try_clone()?, config.clone()),
            Self::Unix(listener) => Self::Unix(listener.try_clone()?),
        })
    }

    /// A listener of the runtime that this is called in.
    pub(crate) fn listen(self) -> io::Result<Listener> {
        Ok(match self {
            Self::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
            Self::Tls(listener, config) => Listener::Tls(TcpListener::from_std(listener)?, config),
            Self::Unix(listener) => Listener::Unix(UnixListener::from_std(listener)?),
        })
    }
}

/// Binds all that `config` says, or takes it up from `inherited`, with what HTTPS shows from now on.
pub(crate) fn bind(config: &Listeners, inherited: &mut Sockets) -> Result<Api, StartError> {
    let mut tcp = |address| {
        let failed = |source| StartError::Listen { what: "the HTTP API", address, source };
        let listener = match inherited.claim_http(address) {
            Some(listener) => listener,
            None => std::net::TcpListener::bind(address).map_err(failed)?,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        Ok::<_, StartError>(listener)
    };
    let mut bound = Vec::new();
    if let Some(address) = config.plain {
        bound.push(Bound::Tcp(tcp(address)?));
    }
    let shown = match &config.tls {
        None => None,
        Some(Https { listen, shown }) => {
            let sender = watch::Sender::new(tls(shown)?);
            bound.push(Bound::Tls(tcp(*listen)?, sender.subscribe()));
            Some(sender)
        }
    };
    if let Some(socket) = &config.unix {
        let failed = |source| StartError::Socket { path: socket.path.clone(), source };
        let listener = match inherited.claim_http_unix(&socket.path) {
            Some(listener) => listener,
            None => unix(socket).map_err(failed)?,
        };
        listener.set_nonblocking(true).map_err(failed)?;
        bound.push(Bound::Unix(listener));
    }
    Ok(Api { bound, shown })
}

/// The API's sockets, and what those with TLS show.
pub(crate) struct Api {
    pub(crate) bound: Vec<Bound>,
    pub(crate) shown: Option<watch::Sender<Arc<ServerConfig>>>,
}

/// A socket that accepts.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, watch::Receiver<Arc<ServerConfig>>),
    Unix(UnixListener),
}

/// A connection, as whichever kind it came.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One that was accepted and has said nothing yet.
pub(crate) enum Accepted {
    Tcp(tokio::net::TcpStream),
    Tls(tokio::net::TcpStream, TlsAcceptor),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// Whether a browser on this host may be tricked into asking it (`reliability.md` A11): not
    /// through a certificate that its page cannot have, and not through a Unix socket.
    pub(crate) fn is_open_loopback(&self) -> bool {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().is_ok_and(|address| address.ip().is_loopback())
            }
            Self::Tls(..) | Self::Unix(_) => false,
        }
    }

    /// The next connection, and from where. Users of a Unix socket are all from nowhere.
    pub(crate) async fn accept(&self) -> io::Result<(Accepted, SocketAddr)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (socket, from) = listener.accept().await?;
                (Accepted::Tcp(socket), from)
            }
            Self::Tls(listener, config) => {
                let (socket, from) = listener.accept().await?;
                (Accepted::Tls(socket, config.borrow().clone().into()), from)
            }
            Self::Unix(listener) => (Accepted::Unix(listener.accept().await?.0), NOWHERE),
        })
    }
}

impl Accepted {
    /// Ready to be spoken HTTP on.
    ///
    /// # Errors
    /// A handshake that fails, or does not end in time.
    pub(crate) async fn open(self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(socket) => {
                let _ = socket.set_nodelay(true);
                Box::new(socket)
            }
            Self::Tls(socket, acceptor) => {
                let _ = socket.set_nodelay(true);
                Box::new(timeout(HANDSHAKE, acceptor.accept(socket)).await??)
            }
            Self::Unix(socket) => Box::new(socket),
        })
    }

    /// Says `text` to a client that has too many connections: best effort, and never waited for.
    pub(crate) fn dismiss(&self, text: &[u8]) {
        match self {
            Self::Tcp(socket) => drop(socket.try_write(text)),
            Self::Unix(socket) => drop(socket.try_write(text)),
            // There is nobody to talk to before the handshake.
            Self::Tls(..) => {}
        }
    }
}

/// Why TLS cannot be spoken with what was configured.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// The certificate's file.
    #[error("tls.https.cert_file: it holds no certificate in PEM")]
    Certificate,
    /// The key's file.
    #[error("tls.https.key_file: it holds no private key in PEM")]
    Key,
    /// The file of the authorities of clients.
    #[error("tls.https.ca_file: it holds no certificate in PEM")]
    Authority,
    /// They do not fit together.
    #[error("tls.https: {0}")]
    Tls(#[from] rustls::Error),
    /// The authorities of clients are none.
    #[error("tls.https.ca_file: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// What speaks TLS with what `shown` says.
pub(crate) fn tls(shown: &Shown) -> Result<Arc<ServerConfig>, InvalidTls> {
    let certificates = |pem: &[u8]| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect()
    };
    let provider = hawser_identity::provider();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &shown.clients {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            if roots.add_parsable_certificates(certificates(pem)).0 == 0 {
                return Err(InvalidTls::Authority);
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            builder.with_client_cert_verifier(verifier.build()?)
        }
    };
    let chain = certificates(&shown.certificate);
    if chain.is_empty() {
        return Err(InvalidTls::Certificate);
    }
    let key = PrivateKeyDer::from_pem_slice(&shown.key).map_err(|_| InvalidTls::Key)?;
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Binds a Unix socket, over one that a process that is gone has left.
fn unix(socket: &UnixSocket) -> io::Result<std::os::unix::net::UnixListener> {
    let UnixSocket { path, mode, user, group } = socket;
    forget_dead(path)?;
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    if user.is_some() || group.is_some() {
        std::os::unix::fs::chown(path, *user, *group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode))?;
    Ok(listener)
}

/// Removes a socket that nobody listens on; anything else stays, and binding says so.
fn forget_dead(path: &Path) -> io::Result<()> {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let is_dead = || {
        let refused = std::os::unix::net::UnixStream::connect(path).err();
        refused.is_some_and(|why| why.kind() == io::ErrorKind::ConnectionRefused)
    };
    if is_socket && is_dead() { std::fs::remove_file(path) } else { Ok(()) }
}

const HANDSHAKE: Duration = Duration::from_secs(10);
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_takes_the_place_of_a_dead_one_and_of_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("http.sock");
        let socket = UnixSocket { path: path.clone(), mode: 0o660, user: None, group: None };
        let first = unix(&socket).expect("free");
        assert!(unix(&socket).is_err(), "somebody listens on it");
        drop(first);
        drop(unix(&socket).expect("nobody listens on it"));
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        std::fs::remove_file(&path).expect("there");
        std::fs::write(&path, "precious").expect("written");
        assert!(unix(&socket).is_err(), "it is no socket");
        assert_eq!(std::fs::read(&path).expect("there"), b"precious");
    }

    #[test]
    fn what_cannot_speak_tls_is_named_by_its_key() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let with = |certificate: &str, key: &str, clients: Option<&str>| {
            tls(&Shown {
                certificate: certificate.into(),
                key: key.as_bytes().to_vec().into(),
                clients: clients.map(Into::into),
            })
        };
        assert!(with(&certificate, &key, None).is_ok());
        assert!(with(&certificate, &key, Some(&certificate)).is_ok());
        let other = rcgen::generate_simple_self_signed(["b".to_owned()]).expect("made");
        let other = other.signing_key.serialize_pem();
        for (refused, expected) in [
            (with("", &key, None), "tls.https.cert_file"),
            (with(&certificate, "", None), "tls.https.key_file"),
            (with(&certificate, &key, Some("x")), "tls.https.ca_file"),
            (with(&certificate, &other, None), "tls.https"),
        ] {
            let refused = refused.expect_err(expected).to_string();
            assert!(refused.starts_with(expected), "{refused}");
        }
    }
}
