//! Who believes whom, and what is said about files that are none.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::testing::TestAuthority;

fn identity(authority: &TestAuthority, host: &str) -> Identity {
    let (certificate, key) = authority.signs(&[host]);
    Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
}

fn authorities(authority: &TestAuthority) -> Authorities {
    Authorities::from_pem(authority.pem().as_bytes()).unwrap()
}

/// What the caller sees, and the protocol that both have agreed on.
async fn greet(connector: &TlsConnector, acceptor: &TlsAcceptor, host: &str) -> io::Result<Option<Vec<u8>>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let answering = async {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"welcome").await?;
        stream.shutdown().await
    };
    let asking = async {
        let mut stream = connect(connector, host, near).await?;
        let mut said = Vec::new();
        // A caller that is not believed learns it when it reads.
        stream.read_to_end(&mut said).await?;
        assert_eq!(said, b"welcome");
        Ok(protocol(&stream).map(<[u8]>::to_vec))
    };
    let (answered, asked) = tokio::join!(answering, asking);
    asked.and_then(|protocol| answered.map(|()| protocol))
}

#[tokio::test]
async fn both_sides_have_to_be_believed() {
    let (ours, other) = (TestAuthority::default(), TestAuthority::default());
    let open = acceptor(&identity(&ours, "localhost"), None, &[HTTP2, HTTP1]).unwrap();
    let trusting = |authority: &TestAuthority, identity: Option<&Identity>| {
        connector(&authorities(authority), identity, &[HTTP1]).unwrap()
    };
    assert_eq!(greet(&trusting(&ours, None), &open, "localhost").await.unwrap(), Some(HTTP1.to_vec()));
    assert!(greet(&trusting(&other, None), &open, "localhost").await.is_err(), "of another authority");
    assert!(greet(&trusting(&ours, None), &open, "example.org").await.is_err(), "of another host");

    let closed = acceptor(&identity(&ours, "127.0.0.1"), Some(&authorities(&ours)), &[HTTP1]).unwrap();
    let (member, stranger) = (identity(&ours, "a"), identity(&other, "a"));
    assert!(greet(&trusting(&ours, Some(&member)), &closed, "127.0.0.1").await.is_ok());
    assert!(greet(&trusting(&ours, Some(&stranger)), &closed, "127.0.0.1").await.is_err());
    assert!(greet(&trusting(&ours, None), &closed, "127.0.0.1").await.is_err());
}

#[tokio::test]
async fn addresses_are_named_with_and_without_brackets() {
    let ours = TestAuthority::default();
    let open = acceptor(&identity(&ours, "::1"), None, &[]).unwrap();
    let connector = connector(&authorities(&ours), None, &[]).unwrap();
    for host in ["::1", "[::1]"] {
        assert_eq!(greet(&connector, &open, host).await.unwrap(), None);
    }
    let error = greet(&connector, &open, "no host").await.unwrap_err();
    assert!(error.to_string().starts_with("no host: "), "{error}");
}

#[test]
fn what_cannot_be_read_says_why() {
    let (ours, other) = (TestAuthority::default(), TestAuthority::default());
    for wrong in ["", "no certificate", &ours.pem().replace('M', "!")] {
        let refused = Authorities::from_pem(wrong.as_bytes()).unwrap_err().to_string();
        assert!(refused.contains("authorities are not readable as PEM"), "{refused}");
    }
    let (certificate, key) = ours.signs(&["a"]);
    let refused = Identity::from_pem(b"", key.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("the certificate is not readable as PEM: there is none"), "{refused}");
    let refused = Identity::from_pem(certificate.as_bytes(), certificate.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("the key is not readable"), "{refused}");
    let (_, another) = other.signs(&["a"]);
    let mixed = Identity::from_pem(certificate.as_bytes(), another.as_bytes()).unwrap();
    let refused = acceptor(&mixed, None, &[]).err().unwrap().to_string();
    assert!(refused.contains("cannot be used together"), "{refused}");
    assert!(!format!("{mixed:?}").contains("PRIVATE"));
}

#[test]
fn an_authority_in_both_is_found() {
    let (ours, other) = (TestAuthority::default(), TestAuthority::default());
    let both =
        Authorities::from_pem([ours.pem().as_bytes(), other.pem().as_bytes()].concat().as_slice()).unwrap();
    assert!(both.shares_one_with(&authorities(&ours)) && authorities(&other).shares_one_with(&both));
    assert!(!authorities(&ours).shares_one_with(&authorities(&other)));
}
