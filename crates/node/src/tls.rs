//! TLS of a node: what its listeners show and ask for, from files that are read again while it runs.
//!
//! | listener       | shows            | asks for                                | protocols          |
//! |----------------|------------------|-----------------------------------------|--------------------|
//! | peers          | the certificate  | one that `tls.authority_file` has signed | lanes, HTTP/2      |
//! | clients        | the certificate  | one of `tls.client_authority_file`, if set | HTTP/2           |
//! | SQS            | the certificate  | nothing: requests are signed             | HTTP/2, HTTP/1.1   |
//! | administration | the certificate  | nothing                                 | HTTP/1.1           |
//!
//! Certificates live for weeks where nodes run for months: files that have changed hold for the next connection. Files that cannot be
//! used change nothing, and the log says so at each look.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub use leasehold_tls::HTTP2;
use leasehold_tls::{
    Authorities, Dialer, HTTP1, Identity, TlsAcceptor, TlsConnector, TlsError, acceptor, connect, connector,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::TlsFiles;
use crate::connection::Connection;
use crate::limits::CONNECT_TIMEOUT_MS;

/// As ALPN names a lane; HTTP/2 on the same port goes by its own name.
pub const LANE: &[u8] = b"leasehold-lane/1";
/// A change of the files is seen within this time, and holds after it once more.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// For the handshake of who has connected. It has a place among the connections meanwhile; peers give up soon themselves.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
const PEER_HANDSHAKE_PATIENCE: Duration = Duration::from_millis(2 * CONNECT_TIMEOUT_MS);
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Which of a node's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Peers,
    Clients,
    Sqs,
    Administration,
}

/// What connections to and from a node are secured with.
pub struct Tls {
    files: TlsFiles,
    parts: RwLock<Arc<Parts>>,
}

struct Parts {
    read: Contents,
    peers: TlsAcceptor,
    clients: TlsAcceptor,
    sqs: TlsAcceptor,
    administration: TlsAcceptor,
    to_lanes: TlsConnector,
    to_services: TlsConnector,
}

/// The files as they are.
#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    authority: Vec<u8>,
    client_authority: Option<Vec<u8>>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsFilesError {
    #[error("cannot read {path}: {error}; `tls` names PEM files that this node may read")]
    Unreadable { path: String, error: io::Error },
    #[error("{0}; see the files that `tls` names")]
    Unusable(#[from] TlsError),
    #[error(
        "`tls.client_authority_file` has an authority that `tls.authority_file` has too, so a client could pass for a node: \
         let an authority of its own sign the certificates of nodes"
    )]
    SameAuthority,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read, or they do not fit each other.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsFilesError> {
        let parts = Parts::of(Contents::read(files)?)?;
        Ok(Self { files: files.clone(), parts: RwLock::new(Arc::new(parts)) })
    }

    /// Takes what a look has found, if the look before has `found` the same: it may have been written half. Returns whether it holds
    /// from now on. Connections that are open stay as they are.
    fn take(&self, read: Contents, found: &mut Option<Contents>) -> Result<bool, TlsFilesError> {
        let is_known = read == self.parts().read;
        if is_known || found.as_ref() != Some(&read) {
            *found = Some(read).filter(|_| !is_known);
            return Ok(false);
        }
        let parts = Arc::new(Parts::of(read)?);
        *self.parts.write().unwrap_or_else(PoisonError::into_inner) = parts;
        Ok(true)
    }

    /// Reads the files again and again, without end, on a thread where a slow disk holds up nobody.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut found = None;
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let files = self.files.clone();
            let reading = tokio::task::spawn_blocking(move || Contents::read(&files));
            // A task that panicked has said so.
            let Ok(read) = reading.await else { continue };
            match read.and_then(|read| self.take(read, &mut found)) {
                Ok(true) => tracing::info!("certificates have changed, and hold for new connections"),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the certificates of before are kept"),
            }
        }
    }

    /// Shakes hands with who has connected.
    ///
    /// # Errors
    /// When that takes too long, or one does not believe the other.
    pub async fn accept(&self, listener: Listener, stream: TcpStream) -> io::Result<Connection> {
        let parts = self.parts();
        let (acceptor, patience) = match listener {
            Listener::Peers => (&parts.peers, PEER_HANDSHAKE_PATIENCE),
            Listener::Clients => (&parts.clients, HANDSHAKE_PATIENCE),
            Listener::Sqs => (&parts.sqs, HANDSHAKE_PATIENCE),
            Listener::Administration => (&parts.administration, HANDSHAKE_PATIENCE),
        };
        let secured = timeout(patience, acceptor.accept(stream)).await??;
        Ok(Connection::Secured(Box::new(secured.into())))
    }

    /// Shakes hands with a peer that was reached at this `host:port`, for a lane.
    ///
    /// # Errors
    /// When its certificate does not name the host or is of another authority, or this node's is.
    pub async fn connect_lane(&self, address: &str, stream: TcpStream) -> io::Result<Connection> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let connector = self.parts().to_lanes.clone();
        Ok(Connection::Secured(Box::new(connect(&connector, host, stream).await?)))
    }

    /// What connects to the services of peers.
    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.parts().to_services.clone(), Duration::from_millis(CONNECT_TIMEOUT_MS))
    }

    fn parts(&self) -> Arc<Parts> {
        self.parts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Parts {
    fn of(read: Contents) -> Result<Self, TlsFilesError> {
        let identity = Identity::from_pem(&read.certificate, &read.key)?;
        let nodes = Authorities::from_pem(&read.authority)?;
        let of_clients = read.client_authority.as_deref().map(Authorities::from_pem).transpose()?;
        if of_clients.as_ref().is_some_and(|of_clients| of_clients.shares_one_with(&nodes)) {
            return Err(TlsFilesError::SameAuthority);
        }
        // Peers would refuse it.
        identity.check_as_client(&nodes)?;
        Ok(Self {
            peers: acceptor(&identity, Some(&nodes), &[LANE, HTTP2])?,
            clients: acceptor(&identity, of_clients.as_ref(), &[HTTP2])?,
            sqs: acceptor(&identity, None, &[HTTP2, HTTP1])?,
            administration: acceptor(&identity, None, &[HTTP1])?,
            to_lanes: connector(&nodes, Some(&identity), &[LANE])?,
            to_services: connector(&nodes, Some(&identity), &[HTTP2])?,
            read,
        })
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, TlsFilesError> {
        Ok(Self {
            certificate: read(&files.certificate)?,
            key: read(&files.key)?,
            authority: read(&files.authority)?,
            client_authority: files.client_authority.as_deref().map(read).transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsFilesError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .and_then(|len| {
            let too_long = || io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB");
            if len as u64 > FILE_BYTES_MAX { Err(too_long()) } else { Ok(()) }
        })
        .map_err(|error| TlsFilesError::Unreadable { path: path.display().to_string(), error })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use leasehold_tls::testing::TestAuthority;
    use tokio::net::TcpListener;

    use super::*;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        /// What a node has whose certificate and whose peers' are this authority's.
        fn of(&self, authority: &TestAuthority) -> TlsFiles {
            let (certificate, key) = authority.signs(&["127.0.0.1"]);
            TlsFiles {
                certificate: self.write("node.pem", &certificate),
                key: self.write("node.key", &key),
                authority: self.write("nodes.pem", authority.pem()),
                client_authority: None,
            }
        }
    }

    fn folder() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    /// One look of a node at its files.
    fn look(tls: &Tls, found: &mut Option<Contents>) -> Result<bool, TlsFilesError> {
        tls.take(Contents::read(&tls.files)?, found)
    }

    /// A lane between two nodes, as one of them sees it.
    async fn lane(from: &Tls, to: &Tls) -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = async { to.accept(Listener::Peers, listener.accept().await?.0).await };
        let connecting =
            async { from.connect_lane(&address.to_string(), TcpStream::connect(address).await?).await };
        let (accepted, connected) = tokio::join!(accepting, connecting);
        let (accepted, connected) = (accepted?, connected?);
        assert_eq!((accepted.protocol(), connected.protocol()), (Some(LANE), Some(LANE)));
        Ok(())
    }

    #[tokio::test]
    async fn files_that_change_hold_for_new_connections() {
        let (folder, other) = (folder(), folder());
        let (first, second) = (TestAuthority::default(), TestAuthority::default());
        let files = folder.of(&first);
        let (here, there) = (Tls::load(&files).unwrap(), Tls::load(&other.of(&first)).unwrap());
        lane(&here, &there).await.unwrap();
        let (mut found_here, mut found_there) = (None, None);
        assert!(!look(&here, &mut found_here).unwrap(), "they are the same");

        folder.of(&second);
        assert!(!look(&here, &mut found_here).unwrap(), "it may be written half");
        assert!(look(&here, &mut found_here).unwrap());
        assert!(lane(&here, &there).await.is_err(), "one has not heard of the new authority");
        other.of(&second);
        assert!(!look(&there, &mut found_there).unwrap() && look(&there, &mut found_there).unwrap());
        lane(&here, &there).await.unwrap();

        std::fs::write(&files.key, "no key").unwrap();
        assert!(!look(&here, &mut found_here).unwrap());
        let error = look(&here, &mut found_here).unwrap_err().to_string();
        assert!(error.contains("the key is not readable"), "{error}");
        lane(&there, &here).await.expect("what was read before holds");
    }

    #[test]
    fn files_that_cannot_be_used_are_refused() {
        let (folder, authority) = (folder(), TestAuthority::default());
        let files = folder.of(&authority);
        let refused = |files: &TlsFiles| Tls::load(files).err().expect("they cannot be used").to_string();
        let missing = TlsFiles { key: folder.0.path().join("missing"), ..files.clone() };
        assert!(refused(&missing).contains("missing: No such file"), "{}", refused(&missing));
        let same = TlsFiles { client_authority: Some(files.authority.clone()), ..files.clone() };
        assert!(refused(&same).contains("a client could pass for a node"), "{}", refused(&same));
        let stranger = folder.write("stranger.pem", TestAuthority::default().pem());
        let foreign = TlsFiles { authority: stranger, ..files.clone() };
        assert!(refused(&foreign).contains("would not be believed"), "{}", refused(&foreign));
        let long = folder.write("long.pem", &" ".repeat(FILE_BYTES_MAX as usize + 1));
        let long = TlsFiles { key: long, ..files.clone() };
        assert!(refused(&long).contains("more than 1 MiB"), "{}", refused(&long));
        let clients = folder.write("clients.pem", TestAuthority::default().pem());
        assert!(Tls::load(&TlsFiles { client_authority: Some(clients), ..files }).is_ok());
    }
}
