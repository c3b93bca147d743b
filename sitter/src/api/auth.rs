//! Right to change or copy data through the API: it takes the shard's token (`api.token_file`).
//!
//! `Authorization: Bearer <token>` (RFC 6750, section 2.1), compared in constant time. A sitter
//! without a token refuses all such requests: nothing is open by omission.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use subtle::ConstantTimeEq;

use super::Api;

/// An error of the API, for people and programs.
#[derive(Serialize)]
struct Problem {
    error: String,
}

/// An answer that says what is wrong in one line.
pub(super) fn problem(code: StatusCode, error: impl Into<String>) -> Response {
    (code, Json(Problem { error: error.into() })).into_response()
}

/// Lets only those in who know the token.
pub(super) async fn require_token(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(token) = &api.token else {
        return problem(
            StatusCode::FORBIDDEN,
            "this sitter has no token, so nothing that changes or copies data is allowed: set `api.token_file` to the \
             same secret on all peers of the shard",
        );
    };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    // Of the lengths nothing is hidden, nor need it be.
    if given.is_some_and(|given| bool::from(given.ct_eq(token.expose().as_bytes()))) {
        return next.run(request).await;
    }
    let what = match given {
        Some(_) => "the token is not this shard's (`api.token_file`)",
        None => "this request needs the shard's token: `Authorization: Bearer <token>`",
    };
    let mut response = problem(StatusCode::UNAUTHORIZED, what);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}

/// The token of `Bearer <token>`; the scheme's case does not matter (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::bearer;

    #[test]
    fn only_bearer_tokens_are_read() {
        assert_eq!(bearer(b"Bearer s3cret"), Some(&b"s3cret"[..]));
        assert_eq!(bearer(b"bearer  s3cret "), Some(&b"s3cret"[..]));
        for value in [&b"Basic s3cret"[..], b"Bearer", b"", b"s3cret"] {
            assert_eq!(bearer(value), None);
        }
    }
}
