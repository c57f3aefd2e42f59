//! What a request says of its signature, in either form.

use std::borrow::Cow;

use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;

use super::{ALGORITHM, SERVICE, Scope, TERMINATOR};
use crate::error::{Error, Kind};
use crate::form;
use crate::limits::SKEW_S_MAX;

/// The signature and what it is over.
pub struct Given<'a> {
    credential: Cow<'a, str>,
    signed_headers: Cow<'a, str>,
    pub signature: Cow<'a, str>,
    pub date: &'a str,
    pub validity: Validity,
}

/// How long a signature holds from its date on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It is for this request, at this time.
    Now,
    /// It is presigned.
    Seconds(i64),
}

fn incomplete(message: impl Into<String>) -> Error {
    Error::new(Kind::IncompleteSignature, message)
}

impl<'a> Given<'a> {
    /// # Errors
    /// `MissingAuthenticationToken` when there is no signature, `IncompleteSignature` when there is a part of one.
    pub fn read(parts: &'a Parts) -> Result<Self, Error> {
        match parts.headers.get(AUTHORIZATION) {
            Some(header) => {
                let header =
                    header.to_str().map_err(|_| incomplete("The header Authorization is no text."))?;
                Self::of_header(parts, header)
            }
            None => Self::of_query(parts.uri.query().unwrap_or_default()),
        }
    }

    fn of_header(parts: &'a Parts, header: &'a str) -> Result<Self, Error> {
        let rest = header.strip_prefix(ALGORITHM).filter(|rest| rest.starts_with(' '));
        let rest = rest.ok_or_else(|| incomplete(format!("Authorization must begin with {ALGORITHM}.")))?;
        let field = |name: &str| {
            let fields = rest.split(',').filter_map(|field| field.trim().split_once('='));
            let mut found = fields.filter(|(field, _)| *field == name).map(|(_, value)| value);
            found
                .next()
                .ok_or_else(|| incomplete(format!("Authorization header requires '{name}' parameter.")))
        };
        let date = parts.headers.get("x-amz-date").and_then(|date| date.to_str().ok());
        let date = date.ok_or_else(|| incomplete("The request must have the header X-Amz-Date."))?;
        Ok(Self {
            credential: field("Credential")?.into(),
            signed_headers: field("SignedHeaders")?.into(),
            signature: field("Signature")?.into(),
            date,
            validity: Validity::Now,
        })
    }

    fn of_query(query: &'a str) -> Result<Self, Error> {
        let find = |name: &str| {
            form::pairs(query.as_bytes()).find(|(found, _)| found == name).map(|(_, value)| value)
        };
        let Some(algorithm) = find("X-Amz-Algorithm") else {
            return Err(Error::new(Kind::MissingAuthentication, "Missing Authentication Token"));
        };
        if algorithm != ALGORITHM {
            return Err(incomplete(format!("X-Amz-Algorithm must be {ALGORITHM}.")));
        }
        let needed = |name: &str| {
            find(name).ok_or_else(|| incomplete(format!("The request must have the parameter {name}.")))
        };
        // Some clients name no end: then the signature holds as long as one in a header.
        let expires = find("X-Amz-Expires").map_or(Ok(SKEW_S_MAX), |expires| expires.parse());
        let expires = expires.map_err(|_| incomplete("X-Amz-Expires is no number."))?;
        // A date has no character that is encoded.
        let raw = query.split('&').find_map(|pair| pair.strip_prefix("X-Amz-Date="));
        let date = raw.ok_or_else(|| incomplete("The request must have the parameter X-Amz-Date."))?;
        Ok(Self {
            credential: needed("X-Amz-Credential")?,
            signed_headers: needed("X-Amz-SignedHeaders")?,
            signature: needed("X-Amz-Signature")?,
            date,
            validity: Validity::Seconds(expires),
        })
    }

    /// Whose signature it is, and for what: `key/20150830/us-east-1/sqs/aws4_request`.
    ///
    /// # Errors
    /// `IncompleteSignature` when it is for something else.
    pub fn scope(&self) -> Result<Scope<'_>, Error> {
        let mut parts = self.credential.split('/');
        let parts = [(); 6].map(|()| parts.next());
        let [Some(key_id), Some(day), Some(region), Some(SERVICE), Some(TERMINATOR), None] = parts else {
            return Err(incomplete(format!(
                "Credential should be scoped to a valid region and to {SERVICE}/{TERMINATOR}."
            )));
        };
        if region.is_empty() || region.len() > 64 || !self.date.starts_with(day) || day.len() != 8 {
            return Err(incomplete(
                "Credential should be scoped to a valid region and to the date of the request.",
            ));
        }
        Ok(Scope { credential: &self.credential, key_id, day, region })
    }

    /// Names in lower case, in order.
    pub fn signed_headers(&self) -> impl Iterator<Item = &str> {
        self.signed_headers.split(';').filter(|name| !name.is_empty())
    }
}
