//! Who calls, and whether they may: the one place where that is decided. Deny is the default.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::{Shared, unreadable};
use crate::problem::Problem;
use crate::token;

/// What a token allows; each role may do what the one before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Silences, acknowledges.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    fn from_word(word: &str) -> Option<Self> {
        match word {
            "viewer" => Some(Self::Viewer),
            "operator" => Some(Self::Operator),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }
}

/// What a route asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permission {
    /// Nothing.
    Anyone,
    /// A token of this role or a higher one.
    AtLeast(Role),
}

/// Who was let in.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The tenant that is seen; every query is bound to it.
    pub(super) tenant: String,
    /// Name of the token.
    pub(super) name: String,
}

/// Lets a request pass, with its [`Caller`], or answers why not.
pub(super) async fn check(
    State((shared, permission)): State<(Arc<Shared>, Permission)>,
    mut request: Request,
    next: Next,
) -> Response {
    let Permission::AtLeast(least) = permission else {
        return next.run(request).await;
    };
    let hash = bearer(&request).map(token::hash);
    match authenticate(&shared, hash, least).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            let asks = problem.status == StatusCode::UNAUTHORIZED;
            let mut response = problem.into_response();
            if asks {
                let challenge = HeaderValue::from_static("Bearer realm=\"tickbird\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            }
            response
        }
    }
}

async fn authenticate(shared: &Shared, hash: Option<[u8; 32]>, least: Role) -> Result<Caller, Problem> {
    let hash = hash.ok_or_else(|| {
        Problem::new(StatusCode::UNAUTHORIZED, "no_token", "the request carries no bearer token")
            .advise("send `Authorization: Bearer <token>`; make one with `tickbird-collector token create-api NAME`")
    })?;
    let tokens = shared.context.readers.read(|rows| rows.api_tokens()).await.map_err(|error| unreadable(&error))?;
    // Every hash is compared, each in constant time, so that the time tells nothing of how near a guess was.
    let mut found = None;
    for token in tokens {
        if bool::from(token.hash.ct_eq(&hash)) {
            found = Some(token);
        }
    }
    let Some(token) = found else {
        tracing::warn!("a request with an unknown token was refused");
        return Err(Problem::new(StatusCode::UNAUTHORIZED, "unknown_token", "the bearer token is not known")
            .advise("make one with `tickbird-collector token create-api NAME`"));
    };
    // A role that this version does not know allows nothing.
    if Role::from_word(&token.role).is_none_or(|role| role < least) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "forbidden", "the token's role does not allow this")
            .advise("use a token of a higher role"));
    }
    Ok(Caller { tenant: token.tenant, name: token.name })
}

fn bearer(request: &Request) -> Option<&str> {
    let value = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
