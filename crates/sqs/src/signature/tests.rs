//! The examples that Amazon publishes, and requests in which something is wrong.

use hyper::Request;
use sha2::Digest as _;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const NOW: &str = "20150830T123600Z";

fn signatures() -> Signatures {
    Signatures::new(&[AccessKey { id: "AKIDEXAMPLE".to_owned(), secret: Secret::new(SECRET) }])
}

fn now() -> i64 {
    date::seconds(NOW).unwrap()
}

/// A request as `target` says, signed over `signed`, which are headers with their values.
struct Signed {
    target: &'static str,
    headers: Vec<(&'static str, String)>,
    signed: &'static str,
    body: &'static str,
    date: &'static str,
    region: &'static str,
}

impl Default for Signed {
    fn default() -> Self {
        Self {
            target: "/",
            headers: vec![
                ("host", "localhost:9324".to_owned()),
                ("x-amz-target", "AmazonSQS.ListQueues".to_owned()),
            ],
            signed: "host;x-amz-date;x-amz-target",
            body: "{}",
            date: NOW,
            region: "us-east-1",
        }
    }
}

impl Signed {
    fn parts(&self, authorization: &str) -> Parts {
        let mut request = Request::post(self.target).header("x-amz-date", self.date);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if !authorization.is_empty() {
            request = request.header("authorization", authorization);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// Signed by the same steps, apart from the code that is tested but for the digests.
    fn authorization(&self) -> String {
        let parts = self.parts("");
        let value = |name: &str| parts.headers[name].to_str().unwrap().to_owned();
        let headers =
            self.signed.split(';').map(|name| format!("{name}:{}\n", value(name))).collect::<String>();
        let canonical = format!(
            "POST\n/\n\n{headers}\n{}\n{}",
            self.signed,
            hex::of_32(Sha256::digest(self.body).into())
        );
        let scope = format!("{}/{}/sqs/aws4_request", &self.date[..8], self.region);
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
            self.date,
            hex::of_32(Sha256::digest(canonical).into())
        );
        let key = derive(SECRET, &self.date[..8], self.region, "sqs");
        let signature = hex::of_32(mac(&key, &[&to_sign]));
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders={}, Signature={signature}",
            self.signed
        )
    }

    fn check(&self) -> Result<(), Kind> {
        self.check_with(&self.authorization())
    }

    fn check_with(&self, authorization: &str) -> Result<(), Kind> {
        signatures()
            .check_at(&self.parts(authorization), self.body.as_bytes(), now())
            .map_err(|error| error.kind)
    }
}

/// "Examples of how to derive a signing key for Signature Version 4" and the request that goes with it.
#[test]
fn a_key_and_a_signature_are_those_of_the_published_example() {
    let key = derive(SECRET, "20150830", "us-east-1", "iam");
    assert_eq!(&*hex::of_32(key), "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
    let request = Request::get("/?Action=ListUsers&Version=2010-05-08")
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .header("host", "iam.amazonaws.com")
        .header("x-amz-date", NOW)
        .header(
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, Signature=5d67",
        );
    let parts = request.body(()).unwrap().into_parts().0;
    let hash = hex::of_32(canonical::digest(&parts, b"", &Given::read(&parts).unwrap()).unwrap());
    assert_eq!(&*hash, "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59");
    let to_sign = format!("AWS4-HMAC-SHA256\n{NOW}\n20150830/us-east-1/iam/aws4_request\n{hash}");
    let signature = hex::of_32(mac(&key, &[&to_sign]));
    assert_eq!(&*signature, "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7");
}

#[test]
fn a_signed_request_passes_and_any_change_to_it_does_not() {
    assert_eq!(Signed::default().check(), Ok(()));
    assert_eq!(Signed { region: "eu-west-1", ..Signed::default() }.check(), Ok(()));
    let authorization = Signed::default().authorization();
    let other_body = Signed { body: "{} ", ..Signed::default() };
    let other_path = Signed { target: "/000000000000/q", ..Signed::default() };
    let other_query = Signed { target: "/?a=b", ..Signed::default() };
    let target =
        vec![("host", "localhost:9324".to_owned()), ("x-amz-target", "AmazonSQS.PurgeQueue".to_owned())];
    let other_target = Signed { headers: target, ..Signed::default() };
    for changed in [other_body, other_path, other_query, other_target] {
        assert_eq!(changed.check_with(&authorization), Err(Kind::SignatureDoesNotMatch));
    }
    let last = authorization.chars().last().unwrap();
    let flipped =
        format!("{}{}", &authorization[..authorization.len() - 1], if last == '0' { '1' } else { '0' });
    assert_eq!(Signed::default().check_with(&flipped), Err(Kind::SignatureDoesNotMatch));
    let shorter = &authorization[..authorization.len() - 1];
    assert_eq!(Signed::default().check_with(shorter), Err(Kind::SignatureDoesNotMatch));
}

#[test]
fn what_says_what_is_asked_must_be_signed() {
    for signed in ["host;x-amz-date", "x-amz-date;x-amz-target"] {
        assert_eq!(
            Signed { signed, ..Signed::default() }.check(),
            Err(Kind::SignatureDoesNotMatch),
            "{signed}"
        );
    }
}

/// Some clients name their operation in both ways, and others do not sign the type: a form must not be made of their JSON.
#[test]
fn a_form_beside_a_target_must_be_signed_as_one() {
    const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";
    const JSON: &str = "application/x-amz-json-1.0";
    let of_type = |kind: &str, signed| {
        let mut request = Signed { signed, body: r#"{"a":"&Action=PurgeQueue"}"#, ..Signed::default() };
        request.headers.push(("content-type", kind.to_owned()));
        request
    };
    let (without, with) = ("host;x-amz-date;x-amz-target", "content-type;host;x-amz-date;x-amz-target");
    assert_eq!(of_type(JSON, without).check(), Ok(()));
    assert_eq!(of_type(FORM, with).check(), Ok(()));
    let authorization = of_type(JSON, without).authorization();
    assert_eq!(of_type(FORM, without).check_with(&authorization), Err(Kind::SignatureDoesNotMatch));
    let authorization = of_type(JSON, with).authorization();
    assert_eq!(of_type(FORM, with).check_with(&authorization), Err(Kind::SignatureDoesNotMatch));
    // Where no target is named there is nothing but the form.
    let headers = vec![("host", "localhost:9324".to_owned()), ("content-type", FORM.to_owned())];
    assert_eq!(Signed { headers, signed: "host;x-amz-date", ..Signed::default() }.check(), Ok(()));
}

/// The SDK for JavaScript signs what HTTP/2 sends: the host is the pseudo-header `:authority`.
#[test]
fn http2_may_sign_its_own_name_of_the_host() {
    let request = |uri: &str, signature: &str| {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/sqs/aws4_request, \
             SignedHeaders=:authority;x-amz-date, Signature={signature}"
        );
        let request = Request::post(uri).header("x-amz-date", NOW).header("authorization", authorization);
        request.body(()).unwrap().into_parts().0
    };
    let check = |uri: &str| {
        let canonical = format!(
            "POST\n/\n\n:authority:localhost:9324\nx-amz-date:{NOW}\n\n:authority;x-amz-date\n{}",
            hex::of_32(Sha256::digest("").into())
        );
        let to_sign = format!(
            "AWS4-HMAC-SHA256\n{NOW}\n20150830/us-east-1/sqs/aws4_request\n{}",
            hex::of_32(Sha256::digest(canonical).into())
        );
        let key = derive(SECRET, "20150830", "us-east-1", "sqs");
        let parts = request(uri, &hex::of_32(mac(&key, &[&to_sign])));
        signatures().check_at(&parts, b"", now()).map_err(|error| error.kind)
    };
    assert_eq!(check("http://localhost:9324/"), Ok(()));
    assert_eq!(check("http://localhost:9325/"), Err(Kind::SignatureDoesNotMatch));
    // HTTP/1.1 has no such name.
    assert_eq!(check("/"), Err(Kind::SignatureDoesNotMatch));
}

#[test]
fn what_is_missing_or_not_for_this_service_is_told() {
    let good = Signed::default();
    let authorization = good.authorization();
    let cases = [
        ("", Kind::MissingAuthentication),
        ("Basic YTpi", Kind::IncompleteSignature),
        (
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/sqs/aws4_request",
            Kind::IncompleteSignature,
        ),
        (&authorization.replace("AKIDEXAMPLE", "AKIDOTHER"), Kind::UnknownKey),
        (&authorization.replace("/sqs/", "/s3/"), Kind::IncompleteSignature),
        (&authorization.replace("/20150830/", "/20150831/"), Kind::IncompleteSignature),
        (&authorization.replace("SignedHeaders", "Headers"), Kind::IncompleteSignature),
    ];
    for (authorization, kind) in cases {
        assert_eq!(good.check_with(authorization), Err(kind), "{authorization}");
    }
}

/// What is right in the last of them is of the past, which is the last that a head tells.
#[test]
fn a_head_tells_what_is_wrong_before_the_body_is_there() {
    let good = Signed::default();
    let authorization = good.authorization();
    for (authorization, kind) in [
        ("", Kind::MissingAuthentication),
        ("Basic YTpi", Kind::IncompleteSignature),
        (&authorization.replace("AKIDEXAMPLE", "AKIDOTHER"), Kind::UnknownKey),
        (&authorization.replace("/sqs/", "/s3/"), Kind::IncompleteSignature),
        (&authorization, Kind::RequestExpired),
    ] {
        let told = signatures().check_head(&good.parts(authorization)).map_err(|error| error.kind);
        assert_eq!(told, Err(kind), "{authorization}");
    }
    assert_eq!(Signatures::new(&[]).check_head(&good.parts("")), Ok(()));
}

#[test]
fn a_clock_may_be_a_quarter_of_an_hour_off() {
    for (date, outcome) in [
        ("20150830T122100Z", Ok(())),
        ("20150830T125100Z", Ok(())),
        ("20150830T122059Z", Err(Kind::RequestExpired)),
        ("20150830T125101Z", Err(Kind::RequestExpired)),
        ("20150830T12:6:0Z", Err(Kind::IncompleteSignature)),
    ] {
        assert_eq!(Signed { date, ..Signed::default() }.check(), outcome, "{date}");
    }
}

/// As aws4 and aws4fetch presign for services other than S3.
#[test]
fn a_presigned_request_that_names_no_end_holds_a_quarter_of_an_hour() {
    let check = |date: &str, expires: &str| {
        let credential = format!("AKIDEXAMPLE%2F{}%2Fus-east-1%2Fsqs%2Faws4_request", &date[..8]);
        let query = format!(
            "Action=ListQueues&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={credential}&X-Amz-Date={date}{expires}&\
             X-Amz-SignedHeaders=host"
        );
        let canonical = format!(
            "GET\n/\n{query}\nhost:localhost:9324\n\nhost\n{}",
            hex::of_32(Sha256::digest("").into())
        );
        let scope = format!("{}/us-east-1/sqs/aws4_request", &date[..8]);
        let to_sign =
            format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex::of_32(Sha256::digest(canonical).into()));
        let signature = hex::of_32(mac(&derive(SECRET, &date[..8], "us-east-1", "sqs"), &[&to_sign]));
        let request = Request::get(format!("/?{query}&X-Amz-Signature={signature}"));
        let parts = request.header("host", "localhost:9324").body(()).unwrap().into_parts().0;
        signatures().check_at(&parts, b"", now()).map_err(|error| error.kind)
    };
    assert_eq!(check("20150830T122100Z", ""), Ok(()));
    assert_eq!(check("20150830T122059Z", ""), Err(Kind::RequestExpired));
    assert_eq!(check("20150830T122059Z", "&X-Amz-Expires=3600"), Ok(()));
    assert_eq!(check(NOW, "&X-Amz-Expires=soon"), Err(Kind::IncompleteSignature));
}

#[test]
fn without_keys_nobody_is_asked() {
    let parts = Signed::default().parts("");
    assert_eq!(Signatures::new(&[]).check(&parts, b""), Ok(()));
}

#[test]
fn only_so_many_keys_are_kept() {
    let signatures = signatures();
    for number in 0..3 * SIGNING_KEYS_MAX {
        let region = format!("r-{number}");
        let credential = format!("AKIDEXAMPLE/20150830/{region}/sqs/aws4_request");
        let scope =
            Scope { credential: &credential, key_id: "AKIDEXAMPLE", day: "20150830", region: &region };
        signatures.signing_key(&scope, &Secret::new(SECRET));
        assert!(signatures.derived.read().unwrap().len() <= SIGNING_KEYS_MAX);
    }
}
