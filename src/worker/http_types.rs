//! Conversions from and to the `http` crate's types, with the cargo feature `http`.

use super::error::{Error, IntoResponse};
use super::request::Request;
use super::response::Response;
use std::io;

/// ```
/// let answer = http::Response::builder().status(201).header("Location", "/7").body("made").expect("a valid answer");
/// let response = rip_server::Response::from(answer);
/// assert_eq!((response.status(), response.header("location")), (201, Some("/7")));
/// ```
impl<B: Into<Vec<u8>>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (head, body) = response.into_parts();
        let start = Response::new(head.status.as_u16());
        let fields = head.headers.iter();
        let with_fields = fields
            .fold(start, |response, (name, value)| response.with_header(name.as_str(), value.as_bytes()));
        with_fields.with_body(body)
    }
}

impl<B: Into<Vec<u8>>> IntoResponse for http::Response<B> {
    fn into_response(self) -> Response {
        self.into()
    }
}

/// A stream is written to its end.
impl TryFrom<Response> for http::Response<Vec<u8>> {
    type Error = Error;

    fn try_from(response: Response) -> Result<Self, Error> {
        let mut builder = http::Response::builder().status(response.status());
        for (name, value) in response.headers() {
            builder = builder.header(name, value);
        }
        Ok(builder.body(response.into_body()?)?)
    }
}

/// The whole request, its body read.
///
/// ```no_run
/// use rip_server::{Error, Request};
///
/// fn handler(request: &mut Request<'_>) -> Result<http::Response<String>, Error> {
///     let request: http::Request<Vec<u8>> = request.try_into()?;
///     Ok(http::Response::new(format!("{} {}", request.method(), request.uri().path())))
/// }
/// ```
impl TryFrom<&mut Request<'_>> for http::Request<Vec<u8>> {
    type Error = Error;

    fn try_from(request: &mut Request<'_>) -> Result<Self, Error> {
        let body = request.read_body()?;
        let mut builder =
            http::Request::builder().method(request.method.as_str()).uri(request.target.as_str());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        // What `http` does not take, as a target with bytes beyond ASCII, is the client's fault.
        builder.body(body).map_err(|error| Error::from(io::Error::other(error)).with_status(400))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_the_http_crate_is_kept_with_its_repeated_fields() {
        let answer = http::Response::builder()
            .status(404)
            .header("Set-Cookie", "a=1")
            .header("Set-Cookie", "b=2")
            .body(b"gone".to_vec())
            .expect("an answer");
        let response = answer.into_response();
        let cookies: Vec<&[u8]> =
            response.headers().filter(|(name, _)| *name == "set-cookie").map(|(_, value)| value).collect();
        assert_eq!(cookies, [b"a=1", b"b=2"]);
        let back = http::Response::<Vec<u8>>::try_from(response).expect("the same");
        assert_eq!((back.status().as_u16(), back.body().as_slice()), (404, b"gone".as_slice()));
        assert_eq!(back.headers().get_all("set-cookie").iter().count(), 2);
    }
}
