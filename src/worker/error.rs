//! The error type of handlers.

use super::response::Response;
use crate::http::phrase::phrase;
use std::error::Error as StdError;
use std::fmt;

/// A handler's failure: any error, by `?`, or an answer for the client.
///
/// An error that comes by `?` is a 500: it stands on stderr with the request's id, and its text goes to the client only
/// where `NODE_ENV` says development in so many words. One with a status of its own is for the client:
///
/// ```
/// use rip_server::{Error, Request, Response};
///
/// fn handler(request: &mut Request<'_>) -> Result<Response, Error> {
///     let id: u32 = match request.parameter("id") {
///         Some(id) => id.parse()?,
///         None => return Err(Error::new(400, "which id?")),
///     };
///     Ok(Response::text(std::fs::read_to_string(format!("{id}.txt"))?))
/// }
/// ```
pub struct Error {
    status: u16,
    /// The text for the client. Without one, the error is printed to stderr.
    words: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An answer: that status, and words for the client.
    pub fn new(status: u16, words: impl Into<String>) -> Self {
        Error { status, words: Some(words.into()), source: None }
    }

    /// The same failure under another status.
    #[must_use]
    pub fn with_status(self, status: u16) -> Self {
        Error { status, ..self }
    }

    /// The status that the client gets.
    pub fn status(&self) -> u16 {
        self.status
    }

    fn answer(self) -> Response {
        let line = self.source.as_ref().map(|_| self.to_string());
        let is_shown = matches!(std::env::var("NODE_ENV").as_deref(), Ok("development" | "dev"));
        let text = match (self.words, &line) {
            (Some(words), _) => words,
            (None, Some(line)) if is_shown => line.clone(),
            (None, _) => phrase(self.status).to_owned(),
        };
        let response = Response::text(text + "\n").with_status(self.status);
        match line {
            Some(line) => response.with_complaint(line),
            None => response,
        }
    }
}

// So that `?` takes every error, this type is none itself.
impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Error { status: 500, words: None, source: Some(Box::new(error)) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.words, &self.source) {
            (Some(words), _) => f.write_str(words),
            (None, Some(source)) => {
                write!(f, "{source}")?;
                let mut cause = source.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
            (None, None) => write!(f, "status {}", self.status),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self, self.status)
    }
}

/// What a handler may return: a [`Response`], text, or a `Result` of either with any error. Types of the app's own can
/// be answers too:
///
/// ```
/// use rip_server::{IntoResponse, Response};
///
/// struct Page { title: &'static str }
///
/// impl IntoResponse for Page {
///     fn into_response(self) -> Response {
///         Response::new(200)
///             .with_header("Content-Type", "text/html; charset=utf-8")
///             .with_body(format!("<title>{}</title>", self.title))
///     }
/// }
///
/// assert_eq!(Page { title: "Shop" }.into_response().into_body()?, b"<title>Shop</title>");
/// assert_eq!("plain text".into_response().status(), 200);
/// # Ok::<(), std::io::Error>(())
/// ```
pub trait IntoResponse {
    /// The answer that goes out.
    fn into_response(self) -> Response;
}

impl IntoResponse for Response {
    fn into_response(self) -> Response {
        self
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Response {
        Response::text(self)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        self.answer()
    }
}

impl<R: IntoResponse, E: Into<Error>> IntoResponse for Result<R, E> {
    fn into_response(self) -> Response {
        match self {
            Ok(response) => response.into_response(),
            Err(error) => error.into().answer(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<u8, Error> {
        Ok(text.parse::<u8>()?)
    }

    #[test]
    fn an_error_by_question_mark_is_a_500_and_a_line_on_stderr() {
        let response = parsed("x").map(|_| "fine").into_response();
        assert_eq!((response.complaint(), response.status()), (Some("invalid digit found in string"), 500));
    }

    #[test]
    fn an_error_with_a_status_is_an_answer_and_no_line() {
        let response = Error::new(404, "no such page").into_response();
        assert_eq!((response.complaint(), response.status()), (None, 404));
        let response = parsed("300").map_err(|error| error.with_status(422)).map(|_| "").into_response();
        assert_eq!((response.complaint().is_some(), response.status()), (true, 422));
    }
}
