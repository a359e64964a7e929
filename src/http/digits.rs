//! Numbers written as digits into a buffer.

/// Appends the parts in order.
pub(super) fn push(out: &mut Vec<u8>, parts: &[&[u8]]) {
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Appends a number in decimal. `write!` would cost more than the rest of a small head. Two digits for each division
/// halve the cost of `X-Request-Start`.
pub fn push_decimal(out: &mut Vec<u8>, mut number: u64) {
    const MAX_DIGITS: usize = 20;
    let mut digits = [0u8; MAX_DIGITS];
    let mut at = MAX_DIGITS;
    while number > 9 {
        let pair = (number % 100) as u8;
        number /= 100;
        at -= 2;
        digits[at] = b'0' + pair / 10;
        digits[at + 1] = b'0' + pair % 10;
    }
    // The first digit of an odd number of them, or a single zero.
    if number > 0 || at == MAX_DIGITS {
        at -= 1;
        digits[at] = b'0' + number as u8;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends the size line of a chunk.
pub fn write_chunk_size(out: &mut Vec<u8>, size: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut shift = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1) * 4;
    while shift > 0 {
        shift -= 4;
        out.push(DIGITS[(size >> shift) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_written_as_everybody_writes_them() {
        let powers = (0..20).map(|power| 10u64.pow(power));
        let near = powers.flat_map(|power| [power - 1, power, power + 1, power.saturating_mul(3)]);
        for number in near.chain([u64::MAX]) {
            let mut out = Vec::new();
            push_decimal(&mut out, number);
            assert_eq!(String::from_utf8(out), Ok(number.to_string()));
        }
    }

    #[test]
    fn chunk_sizes_are_written_in_hexadecimal() {
        for (size, line) in [(1, "1\r\n"), (16, "10\r\n"), (65_535, "ffff\r\n")] {
            let mut out = Vec::new();
            write_chunk_size(&mut out, size);
            assert_eq!(out, line.as_bytes());
        }
    }
}
