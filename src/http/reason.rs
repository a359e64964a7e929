//! Why the server answers in place of the app: status, word for the log and sentence for the client, in one table.

use std::fmt;

/// What is wrong with a request that is refused as `bad_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    RequestLine,
    Version,
    Method,
    MethodTooLong,
    MethodNotServed,
    Target,
    TargetTooLong,
    Host,
    HostTooLong,
    HostMissing,
    HostTwice,
    LineEnd,
    FieldName,
    FieldFolded,
    FieldValue,
    HeadTooLong,
    TooManyFields,
    LengthInvalid,
    LengthTwice,
    LengthAndCoding,
    CodingInvalid,
    CodingNotServed,
    CodingInHttp10,
    Expectation,
    ChunkSize,
    ChunkLineTooLong,
    ChunkData,
    Trailer,
    TrailerTooLong,
    Incomplete,
}

/// One row for each reason, with everything that depends on it, so that no place can forget one.
macro_rules! reasons {
    ($($(#[$about:meta])* $name:ident => ($status:literal, $code:literal, $message:literal),)*) => {
        /// Why a request ends with an answer of the server's own, or with none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$about])* $name,)*
            BadRequest(Bad),
        }

        impl Reason {
            /// Each reason once; one `BadRequest` stands for all of them.
            pub const ALL: &[Reason] = &[$(Reason::$name,)* Reason::BadRequest(Bad::RequestLine)];

            /// The status, the word in the log, the sentence for a person.
            const fn info(self) -> (u16, &'static str, &'static str) {
                match self {
                    $(Reason::$name => ($status, $code, $message),)*
                    Reason::BadRequest(bad) => bad.info(),
                }
            }
        }
    };
}

reasons! {
    QueueFull => (503, "queue_full", "Too many requests are waiting; please try again in a second."),
    QueueTimeout => (504, "queue_timeout", "No worker became free in time."),
    ReadTimeout => (504, "read_timeout", "The app took too long to answer."),
    ClientTimeout => (408, "client_timeout", "The request took too long to arrive."),
    BodyTooLarge => (413, "body_too_large", "The request's body is larger than this server takes."),
    SpoolFull => (503, "spool_full", "There is no room to hold the request's body; please try again later."),
    WorkerBusy => (503, "worker_busy", "The workers were busy; please try again in a second."),
    ConnectFailed => (502, "connect_failed", "The app's worker could not be reached."),
    BadResponse => (502, "bad_response", "The app gave an answer that is not valid HTTP."),
    WorkerDied => (502, "worker_died", "The app's worker ended before it had answered."),
    StreamsFull => (503, "streams_full", "No worker may hold another event stream or WebSocket; please try again later."),
    StartFailed => (503, "start_failed", "The app does not start; the server's log says why."),
    /// A living worker has closed its connection before its answer was whole.
    AnswerCut => (502, "answer_cut", "The app's worker closed its connection before its answer was whole."),
    /// A living worker has closed its connection without a byte of an answer, and the method is not registered: this
    /// is how Bun refuses a method.
    MethodNotTaken => (501, "method_not_taken", "The app's runtime does not know this method."),
    /// Workers have died of the same request.
    Quarantined => (503, "quarantined", "Requests like this one have ended workers; they are refused for a minute."),
    Stopping => (503, "stopping", "The server is stopping; please try again in a second."),
    ClientGone => (499, "client_gone", "The client went away."),
}

impl Reason {
    /// The log's word, without the details of a bad request.
    pub const fn code(self) -> &'static str {
        self.info().1
    }

    pub const fn status(self) -> u16 {
        self.info().0
    }

    /// What a person reads in the body of the refusal.
    pub const fn message(self) -> &'static str {
        self.info().2
    }

    /// Whether the same request may well succeed a second later, so that `Retry-After: 1` goes out.
    pub const fn passes_soon(self) -> bool {
        matches!(
            self,
            Reason::QueueFull
                | Reason::WorkerBusy
                | Reason::Stopping
                | Reason::SpoolFull
                | Reason::StreamsFull
        )
    }

    /// Whether the client's connection has lost its place, or its body is unread: then it is closed.
    pub const fn ends_connection(self) -> bool {
        use Reason::*;
        match self {
            ClientTimeout | BodyTooLarge | SpoolFull | BadRequest(_) | Stopping | ClientGone => true,
            QueueFull | QueueTimeout | ReadTimeout | WorkerBusy | ConnectFailed | BadResponse
            | WorkerDied | AnswerCut | MethodNotTaken | StreamsFull | StartFailed | Quarantined => false,
        }
    }
}

impl Bad {
    const fn info(self) -> (u16, &'static str, &'static str) {
        use Bad::*;
        match self {
            RequestLine => (400, "request_line", "The request line is not a method, a target and HTTP/1.1."),
            Version => (505, "version", "This server speaks HTTP/1.1 and HTTP/1.0."),
            Method => (400, "method", "The method is not a token."),
            MethodTooLong => (501, "method_too_long", "The method is longer than 64 bytes."),
            MethodNotServed => (501, "method_not_served", "CONNECT and TRACE are not served here."),
            Target => (400, "target", "The request target is not valid."),
            TargetTooLong => (414, "target_too_long", "The request target is longer than 16 KiB."),
            Host => (400, "host", "The Host is not a host with an optional port."),
            HostTooLong => (400, "host_too_long", "The Host is longer than 1 KiB."),
            HostMissing => (400, "host_missing", "HTTP/1.1 requires a Host field."),
            HostTwice => (400, "host_twice", "There is more than one Host field."),
            LineEnd => {
                (400, "line_end", "A line of the head does not end with CR LF, or there is a bare CR or LF.")
            }
            FieldName => (400, "field_name", "A field name is not a token, or is not followed by a colon."),
            FieldFolded => {
                (400, "field_folded", "A line of the head begins with a blank; folded fields are not served.")
            }
            FieldValue => (400, "field_value", "A field value contains a control character."),
            HeadTooLong => (431, "head_too_long", "The head is longer than 64 KiB."),
            TooManyFields => (431, "too_many_fields", "The head has more than 200 fields."),
            LengthInvalid => (400, "length_invalid", "The Content-Length is not a decimal number."),
            LengthTwice => (400, "length_twice", "There is more than one Content-Length."),
            LengthAndCoding => {
                (400, "length_and_coding", "Content-Length and Transfer-Encoding are both there.")
            }
            CodingInvalid => {
                (400, "coding_invalid", "The Transfer-Encoding does not end with chunked, once.")
            }
            CodingNotServed => (501, "coding_not_served", "The only transfer coding served here is chunked."),
            CodingInHttp10 => (400, "coding_in_http10", "HTTP/1.0 has no Transfer-Encoding."),
            Expectation => (417, "expectation", "The only expectation known here is 100-continue."),
            ChunkSize => (400, "chunk_size", "A chunk-size line is not valid."),
            ChunkLineTooLong => (400, "chunk_line_too_long", "A chunk-size line is longer than 4 KiB."),
            ChunkData => (400, "chunk_data", "A chunk is longer than it says."),
            Trailer => (400, "trailer", "A trailer field is not valid."),
            TrailerTooLong => (431, "trailer_too_long", "The trailer section is longer than 16 KiB."),
            Incomplete => (400, "incomplete", "The request ended before it was whole."),
        }
    }
}

/// The log's word: `queue_full`, or `bad_request: chunk_size`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::BadRequest(bad) => write!(f, "bad_request: {}", bad.info().1),
            other => f.write_str(other.info().1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{
        MAX_CHUNK_LINE_BYTES, MAX_FIELDS, MAX_HEAD_BYTES, MAX_HOST_BYTES, MAX_METHOD_BYTES, MAX_TARGET_BYTES,
        MAX_TRAILER_BYTES,
    };

    const DOCUMENT: &str = include_str!("../../docs/requests.md");

    /// `ChunkSize` as the log writes it: `chunk_size`.
    fn snake_case(name: &str) -> String {
        let mut words = String::new();
        for letter in name.chars() {
            if letter.is_ascii_uppercase() && !words.is_empty() {
                words.push('_');
            }
            words.push(letter.to_ascii_lowercase());
        }
        words
    }

    #[test]
    fn each_reason_has_the_status_that_the_documents_name() {
        let (bad_request, others) = Reason::ALL.split_last().expect("some");
        assert_eq!(bad_request, &Reason::BadRequest(Bad::RequestLine));
        for reason in others {
            let row = format!("| `{}` | {} | ", reason.code(), reason.status());
            assert!(DOCUMENT.contains(&row), "{row}");
            let word = snake_case(&format!("{reason:?}"));
            assert_eq!((reason.code(), reason.to_string()), (&*word, word.clone()));
            assert!(reason.message().ends_with('.'), "{}", reason.message());
        }
    }

    #[test]
    fn a_bad_request_is_answered_by_what_is_wrong_with_it() {
        use Bad::*;
        for (status, all) in [
            (400, &[RequestLine, Method, Target, Host, HostTooLong, HostMissing, HostTwice][..]),
            (400, &[LineEnd, FieldName, FieldFolded, FieldValue, LengthInvalid, LengthTwice]),
            (400, &[LengthAndCoding, CodingInvalid, CodingInHttp10, ChunkSize, ChunkLineTooLong]),
            (400, &[ChunkData, Trailer, Incomplete]),
            (414, &[TargetTooLong]),
            (417, &[Expectation]),
            (431, &[HeadTooLong, TooManyFields, TrailerTooLong]),
            (501, &[MethodTooLong, MethodNotServed, CodingNotServed]),
            (505, &[Version]),
        ] {
            for bad in all {
                let (reason, word) = (Reason::BadRequest(*bad), snake_case(&format!("{bad:?}")));
                assert_eq!((reason.status(), reason.code()), (status, &*word));
                assert_eq!(reason.to_string(), format!("bad_request: {word}"));
                assert!(reason.message().ends_with('.'), "{}", reason.message());
            }
        }
    }

    #[test]
    fn refusals_name_the_bounds_that_are_in_force() {
        for (bad, bound) in [
            (Bad::HeadTooLong, format!("{} KiB", MAX_HEAD_BYTES / 1024)),
            (Bad::TooManyFields, format!("{MAX_FIELDS} fields")),
            (Bad::HostTooLong, format!("{} KiB", MAX_HOST_BYTES / 1024)),
            (Bad::MethodTooLong, format!("{MAX_METHOD_BYTES} bytes")),
            (Bad::TargetTooLong, format!("{} KiB", MAX_TARGET_BYTES / 1024)),
            (Bad::ChunkLineTooLong, format!("{} KiB", MAX_CHUNK_LINE_BYTES / 1024)),
            (Bad::TrailerTooLong, format!("{} KiB", MAX_TRAILER_BYTES / 1024)),
        ] {
            let message = Reason::BadRequest(bad).message();
            assert!(message.contains(&format!(" {bound}.")), "{bound}: {message}");
        }
    }

    #[test]
    fn who_is_told_to_try_again_gets_a_retry_after() {
        for reason in Reason::ALL {
            let says_so = reason.message().contains("please try again");
            assert_eq!(reason.passes_soon(), says_so, "{reason}");
        }
    }

    #[test]
    fn a_connection_with_unread_bytes_or_without_a_future_ends() {
        let ends = Reason::ALL.iter().filter(|reason| reason.ends_connection());
        let ends: Vec<&str> = ends.map(|reason| reason.code()).collect();
        let expected =
            ["client_timeout", "body_too_large", "spool_full", "stopping", "client_gone", "request_line"];
        assert_eq!(ends, expected);
    }
}
