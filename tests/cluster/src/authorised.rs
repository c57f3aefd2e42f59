//! Certificates of a cluster on this host, and of its clients.

use leasehold_client::Tls;
use leasehold_tls::testing::TestAuthority;
use tempfile::TempDir;

/// Who signs for nodes and for clients, and the files of the nodes; they are gone with this value.
pub struct Authorised {
    pub nodes: TestAuthority,
    pub clients: TestAuthority,
    dir: TempDir,
}

impl Default for Authorised {
    fn default() -> Self {
        let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
        Self { nodes: TestAuthority::default(), clients: TestAuthority::default(), dir }
    }
}

impl Authorised {
    /// Of the nodes. All are on this host, so one certificate is right for all.
    #[must_use]
    pub fn settings(&self) -> Vec<(String, String)> {
        let (certificate, key) = self.nodes.signs(&["127.0.0.1"]);
        let files = [
            ("tls.certificate_file", self.write("node.pem", &certificate)),
            ("tls.key_file", self.write("node.key", &key)),
            ("tls.authority_file", self.write("nodes.pem", self.nodes.pem())),
            ("tls.client_authority_file", self.write("clients.pem", self.clients.pem())),
        ];
        files.map(|(key, path)| (key.to_owned(), path)).to_vec()
    }

    /// For a client that believes the nodes and shows nothing.
    #[must_use]
    pub fn tls(&self) -> Tls {
        Tls::new().authorities(self.nodes.pem())
    }

    /// For a client that believes the nodes and shows a certificate of this authority.
    #[must_use]
    pub fn of(&self, authority: &TestAuthority) -> Tls {
        let (certificate, key) = authority.signs(&["client"]);
        self.tls().identity(certificate, key)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{error}"));
        path.display().to_string()
    }
}
