//! The chunked coding (RFC 9112 §7.1), decoded in place: extensions and trailers are read strictly and dropped.

use super::{MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES, field, reason::Bad};
use std::ops::Range;

/// A decoder that accepts the body in pieces of any size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunked {
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In a size: its value so far, and the bytes of its line.
    Size {
        value: u64,
        line_bytes: usize,
    },
    /// In the blanks between a size and its extension.
    SizeBlank {
        value: u64,
        line_bytes: usize,
    },
    /// In an extension, which is thrown away.
    Extension {
        value: u64,
        line_bytes: usize,
    },
    /// After the CR of a size line.
    SizeLf {
        value: u64,
    },
    /// In the data of a chunk.
    Data {
        left: u64,
    },
    /// After a chunk's data.
    DataCr,
    DataLf,
    /// At the start of a trailer line, in its name, in its value, after its CR.
    TrailerStart {
        bytes: usize,
    },
    TrailerName {
        bytes: usize,
    },
    TrailerValue {
        bytes: usize,
    },
    TrailerLf {
        bytes: usize,
    },
    /// After the CR of the empty line that ends the body.
    EndLf,
    Ended,
}

/// Why a body cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Bad(Bad),
    /// A chunk is larger than what is left of the body's bound.
    TooLarge,
}

/// The result of one call of [`Chunked::decode`].
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    /// How many bytes of the input were read: all, except at the end of the body.
    pub consumed: usize,
    /// Where the decoded data is now, in one piece.
    pub data: Range<usize>,
    /// The body is complete.
    pub ended: bool,
}

impl Default for Chunked {
    fn default() -> Self {
        Chunked { state: State::Size { value: 0, line_bytes: 0 } }
    }
}

impl Chunked {
    /// Decodes `bytes` in place. Data of several chunks is moved together; that of one chunk stays where it is.
    /// `room_bytes`: how much data may still come in all; a chunk beyond it is refused by its size line alone.
    ///
    /// # Errors
    /// What is wrong. Nobody can tell then where the message ends.
    pub fn decode(&mut self, bytes: &mut [u8], room_bytes: u64) -> Result<Decoded, Fault> {
        let mut data = 0..0;
        let mut at = 0;
        while at < bytes.len() && self.state != State::Ended {
            if let State::Data { left } = self.state {
                let available = bytes.len() - at;
                let take = usize::try_from(left).map_or(available, |left| left.min(available));
                if data.is_empty() {
                    data = at..at + take;
                } else {
                    bytes.copy_within(at..at + take, data.end);
                    data.end += take;
                }
                at += take;
                let left = left - take as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
            } else {
                self.state = self.state.step(bytes[at])?;
                at += 1;
                if let State::Data { left } = self.state
                    && left > room_bytes.saturating_sub(data.len() as u64)
                {
                    return Err(Fault::TooLarge);
                }
            }
        }
        Ok(Decoded { consumed: at, data, ended: self.state == State::Ended })
    }
}

impl State {
    /// One byte of a size line, of a line end or of the trailer section.
    fn step(self, byte: u8) -> Result<State, Fault> {
        use State::*;
        Ok(match self {
            Size { line_bytes, .. } | SizeBlank { line_bytes, .. } | Extension { line_bytes, .. }
                if line_bytes >= MAX_CHUNK_LINE_BYTES =>
            {
                return Err(Fault::Bad(Bad::ChunkLineTooLong));
            }
            Size { value, line_bytes } => match (char::from(byte).to_digit(16), byte) {
                (Some(digit), _) => {
                    let value = value.checked_mul(16).ok_or(Fault::TooLarge)? + u64::from(digit);
                    Size { value, line_bytes: line_bytes + 1 }
                }
                (None, b'\r') if line_bytes > 0 => SizeLf { value },
                (None, b';') if line_bytes > 0 => Extension { value, line_bytes: line_bytes + 1 },
                // RFC 9112 §7.1.1: who receives it must take a blank before the `;` as none. Without a `;` it is wrong.
                (None, b' ' | b'\t') if line_bytes > 0 => SizeBlank { value, line_bytes: line_bytes + 1 },
                (None, _) => return Err(Fault::Bad(Bad::ChunkSize)),
            },
            SizeBlank { value, line_bytes } => match byte {
                b' ' | b'\t' => SizeBlank { value, line_bytes: line_bytes + 1 },
                b';' => Extension { value, line_bytes: line_bytes + 1 },
                _ => return Err(Fault::Bad(Bad::ChunkSize)),
            },
            Extension { value, line_bytes } => match byte {
                b'\r' => SizeLf { value },
                _ if field::is_value(&[byte]) => Extension { value, line_bytes: line_bytes + 1 },
                _ => return Err(Fault::Bad(Bad::ChunkSize)),
            },
            SizeLf { value } => match (byte, value) {
                (b'\n', 0) => TrailerStart { bytes: 0 },
                (b'\n', left) => Data { left },
                _ => return Err(Fault::Bad(Bad::ChunkSize)),
            },
            DataCr if byte == b'\r' => DataLf,
            DataLf if byte == b'\n' => Size { value: 0, line_bytes: 0 },
            DataCr | DataLf => return Err(Fault::Bad(Bad::ChunkData)),
            TrailerStart { bytes } | TrailerName { bytes } | TrailerValue { bytes } | TrailerLf { bytes }
                if bytes >= MAX_TRAILER_BYTES =>
            {
                return Err(Fault::Bad(Bad::TrailerTooLong));
            }
            TrailerStart { .. } if byte == b'\r' => EndLf,
            TrailerStart { bytes } if field::is_token_byte(byte) => TrailerName { bytes: bytes + 1 },
            TrailerName { bytes } if byte == b':' => TrailerValue { bytes: bytes + 1 },
            TrailerName { bytes } if field::is_token_byte(byte) => TrailerName { bytes: bytes + 1 },
            TrailerValue { bytes } if byte == b'\r' => TrailerLf { bytes: bytes + 1 },
            TrailerValue { bytes } if field::is_value(&[byte]) => TrailerValue { bytes: bytes + 1 },
            TrailerLf { bytes } if byte == b'\n' => TrailerStart { bytes: bytes + 1 },
            EndLf if byte == b'\n' => Ended,
            TrailerStart { .. } | TrailerName { .. } | TrailerValue { .. } | TrailerLf { .. } | EndLf => {
                return Err(Fault::Bad(Bad::Trailer));
            }
            // The loop in `decode` never steps through these two.
            Data { .. } | Ended => self,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes in the given segmentation: the data, what was left over, or the complaint.
    fn decode(segments: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>, bool), Fault> {
        let (mut decoder, mut data, mut remaining, mut ended) =
            (Chunked::default(), Vec::new(), Vec::new(), false);
        for segment in segments {
            let mut bytes = segment.to_vec();
            let decoded = decoder.decode(&mut bytes, u64::MAX)?;
            data.extend_from_slice(&bytes[decoded.data]);
            remaining.extend_from_slice(&bytes[decoded.consumed..]);
            ended = decoded.ended;
        }
        Ok((data, remaining, ended))
    }

    #[test]
    fn whole_and_byte_by_byte_give_the_same() {
        let body = b"5;a=b;c=\"d;e\"\r\nhello\r\n0A\r\n0123456789\r\n000;last\r\nX-Sum: 1\r\n\r\nGET";
        let whole = decode(&[body]).expect("valid");
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(decode(&bytes), Ok(whole.clone()));
        assert_eq!(whole, (b"hello0123456789".to_vec(), b"GET".to_vec(), true));
    }

    #[test]
    fn sizes_are_hexadecimal_digits_and_nothing_else() {
        for bad in [
            " 5\r\n", "5 \r\n", "5 5\r\n", " ;a\r\n", "5 \t\r\n", "+5\r\n", "0x5\r\n", "\r\n", ";a\r\n",
            "5\n",
        ] {
            assert_eq!(decode(&[bad.as_bytes()]), Err(Fault::Bad(Bad::ChunkSize)), "{bad:?}");
        }
        for bad in ["5;a\rb=c\r\n", "5;a\nb\r\n", "5;a\0b\r\n", "5\r5"] {
            assert_eq!(decode(&[bad.as_bytes()]), Err(Fault::Bad(Bad::ChunkSize)), "{bad:?}");
        }
    }

    #[test]
    fn a_chunk_ends_where_its_size_says() {
        for bad in ["5\r\nhelloo\r\n", "5\r\nhello\n", "5\r\nhello\r5", "5\r\nhello5\r\n"] {
            assert_eq!(decode(&[bad.as_bytes()]), Err(Fault::Bad(Bad::ChunkData)), "{bad:?}");
        }
    }

    #[test]
    fn trailers_are_fields() {
        for good in ["", "X:\r\n", "X: y\tz\r\nY-2: \u{e9}\r\n"] {
            let body = format!("0\r\n{good}\r\n");
            assert_eq!(decode(&[body.as_bytes()]), Ok((Vec::new(), Vec::new(), true)), "{good:?}");
        }
        for bad in
            ["X\r\n", ": y\r\n", " X: y\r\n", "X Y: z\r\n", "X: \0\r\n", "X: y\n", "X: y\rZ", "\n", "\rX"]
        {
            let body = format!("0\r\n{bad}");
            assert_eq!(decode(&[body.as_bytes()]), Err(Fault::Bad(Bad::Trailer)), "{bad:?}");
        }
    }

    #[test]
    fn lines_and_trailers_may_fill_their_bounds() {
        let size = |bytes: usize| format!("{:0>bytes$}\r\n", "5");
        let extension = |bytes: usize| format!("5;{}\r\n", "a".repeat(bytes - 2));
        // The CR counts too.
        for line in [size(MAX_CHUNK_LINE_BYTES - 1), extension(MAX_CHUNK_LINE_BYTES - 1)] {
            assert_eq!(decode(&[line.as_bytes(), b"hello"]), Ok((b"hello".to_vec(), Vec::new(), false)));
        }
        for line in [size(MAX_CHUNK_LINE_BYTES), extension(MAX_CHUNK_LINE_BYTES)] {
            assert_eq!(decode(&[line.as_bytes()]), Err(Fault::Bad(Bad::ChunkLineTooLong)));
        }
        let fields = |bytes: usize| {
            let short = "Ab: c\r\n".repeat(1000);
            format!("0\r\n{short}X: {}\r\n\r\n", "y".repeat(bytes - short.len() - "X: \r\n\r".len()))
        };
        let ended = Ok((Vec::new(), Vec::new(), true));
        assert_eq!(decode(&[fields(MAX_TRAILER_BYTES).as_bytes()]), ended);
        let too_long = decode(&[fields(MAX_TRAILER_BYTES + 1).as_bytes()]);
        assert_eq!(too_long, Err(Fault::Bad(Bad::TrailerTooLong)));
    }

    #[test]
    fn a_blank_before_an_extension_is_read_as_none() {
        let body = decode(&[b"5 ;a\r\nhello\r\n5\t ; b = c\r\nworld\r\n0 ;d\r\n\r\n"]);
        assert_eq!(body, Ok((b"helloworld".to_vec(), Vec::new(), true)));
    }

    #[test]
    fn a_chunk_beyond_the_room_is_refused_by_its_size_line() {
        let mut decoder = Chunked::default();
        assert_eq!(decoder.decode(&mut b"5\r\nhello\r\n4\r\n".to_vec(), 8), Err(Fault::TooLarge));
        // It is a size all the same, if a size that no number here holds.
        assert_eq!(decode(&[b"10000000000000005\r\n"]), Err(Fault::TooLarge));
        assert!(Chunked::default().decode(&mut b"5\r\nhello\r\n3\r\n".to_vec(), 8).is_ok());
    }

    #[test]
    fn endless_lines_hit_their_bounds() {
        assert_eq!(decode(&[b"5", &[b' '; 5000]]), Err(Fault::Bad(Bad::ChunkLineTooLong)));
        assert_eq!(decode(&[b"5;", &[b'a'; 5000]]), Err(Fault::Bad(Bad::ChunkLineTooLong)));
        assert_eq!(decode(&[b"0\r\nX: ", &[b't'; 17_000]]), Err(Fault::Bad(Bad::TrailerTooLong)));
        assert_eq!(decode(&[b"0\r\nno colon here\r\n"]), Err(Fault::Bad(Bad::Trailer)));
    }
}
