//! Files of `NAME=value` lines, as dotenv has them: `--env-file`.

use nix::libc::O_NONBLOCK;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A name and its value.
pub type Variable = (String, String);

/// Environments are small: execve takes 2 MiB at most, with the arguments.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the variables of a file.
///
/// # Errors
/// One line: the file, its line, and what would do.
pub fn read(path: &Path) -> Result<Vec<Variable>, String> {
    let shown = crate::paths::shown(path);
    let mut text = String::new();
    // The server waits for no pipe.
    let opened = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    if opened.as_ref().is_ok_and(|file| file.metadata().is_ok_and(|metadata| !metadata.is_file())) {
        return Err(format!(
            "--env-file: '{shown}' is no plain file; one would do, since each reload reads it again"
        ));
    }
    match opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text)) {
        Err(error) => Err(format!("--env-file: '{shown}' cannot be read: {error}")),
        Ok(bytes) if bytes as u64 > MAX_BYTES => Err(format!("--env-file: '{shown}' is larger than 1 MiB")),
        Ok(_) => parse(&text).map_err(|line| {
            format!("--env-file: line {line} of '{shown}' is not NAME=value (a # begins a comment)")
        }),
    }
}

/// The variables of a text, or the number of the line that is wrong. A value may stand in single quotes, which keep it
/// as it is, or in double quotes, where `\n`, `\t`, `\"` and `\\` are understood; a quoted value may have several lines.
fn parse(text: &str) -> Result<Vec<Variable>, usize> {
    let mut variables = Vec::new();
    let mut remaining = text.strip_prefix('\u{feff}').unwrap_or(text);
    loop {
        remaining = remaining.trim_start();
        if remaining.is_empty() {
            return Ok(variables);
        }
        let (line, behind) = remaining.split_once('\n').unwrap_or((remaining, ""));
        if line.starts_with('#') {
            remaining = behind;
            continue;
        }
        let wrong = || text[..text.len() - remaining.len()].matches('\n').count() + 1;
        let assignment = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = assignment.split_once('=').ok_or_else(wrong)?;
        let name = name.trim();
        let is_name = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if name.is_empty() || !name.chars().all(is_name) || value.contains('\0') {
            return Err(wrong());
        }
        let value = value.trim_start();
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                // From the quote on, to the end of the text.
                let from =
                    remaining.len() - behind.len() - usize::from(line.len() < remaining.len()) - value.len();
                let (value, end) = quoted(&remaining[from + 1..], quote).ok_or_else(wrong)?;
                let after = &remaining[from + 1 + end..];
                let (tail, behind) = after.split_once('\n').unwrap_or((after, ""));
                if !(tail.trim().is_empty() || tail.trim_start().starts_with('#')) {
                    return Err(wrong());
                }
                remaining = behind;
                value
            }
            _ => {
                remaining = behind;
                let comment = value.find(" #").or_else(|| value.starts_with('#').then_some(0));
                value[..comment.unwrap_or(value.len())].trim_end().to_owned()
            }
        };
        variables.push((name.to_owned(), value));
    }
}

/// The text up to the closing quote, and how many bytes it took with that.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\0' => return None,
            _ if letter == quote => return Some((value, at + 1)),
            '\\' if quote == '"' => match letters.next()?.1 {
                'n' => value.push('\n'),
                't' => value.push('\t'),
                'r' => value.push('\r'),
                other @ ('"' | '\\' | '$') => value.push(other),
                other => value.extend(['\\', other]),
            },
            _ => value.push(letter),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(text: &str) -> Vec<Variable> {
        parse(text).expect(text)
    }

    #[test]
    fn lines_of_all_kinds_are_read() {
        let text = "\u{feff}# a comment\n\nA=1\nexport B = two words # and a comment\r\nC='as $it \\n is'\n\
                    D=\"one\\ntwo \\\"x\\\"\" # c\nE=\"over\ntwo lines\"\nF=\nG=a#b=c\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "as $it \\n is"),
            ("D", "one\ntwo \"x\""),
            ("E", "over\ntwo lines"),
            ("F", ""),
            ("G", "a#b=c"),
        ];
        assert_eq!(variables(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(variables(""), []);
    }

    #[test]
    fn a_line_that_is_no_assignment_is_named() {
        for (text, line) in
            [("A=1\nnonsense\n", 2), ("=1", 1), ("A b=1", 1), ("\n\nA=\"open", 3), ("A='x' y", 1)]
        {
            assert_eq!(parse(text), Err(line), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-C=\"'# \\\\nx\n\r\u{e9}]{0,40}") {
            let _ = parse(&text);
        }
    }

    #[test]
    fn a_plain_file_of_up_to_1_mib_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let write = |bytes: usize| {
            let path = dir.path().join(format!("{bytes}.env"));
            std::fs::write(&path, format!("A=1\n#{}", "x".repeat(bytes - 5))).expect("written");
            read(&path)
        };
        let variables = vec![("A".to_owned(), "1".to_owned())];
        assert_eq!((write(100), write(1024 * 1024)), (Ok(variables.clone()), Ok(variables)));
        assert!(write(1024 * 1024 + 1).is_err_and(|error| error.contains("larger than 1 MiB")));
        assert!(read(dir.path()).is_err_and(|error| error.contains("no plain file")));
        assert!(read(&dir.path().join("none")).is_err_and(|error| error.contains("cannot be read")));
        std::fs::write(dir.path().join("bad.env"), "A=1\nnonsense\n").expect("written");
        assert!(read(&dir.path().join("bad.env")).is_err_and(|error| error.contains("line 2 of ")));
    }

    #[test]
    fn quotes_end_where_they_say_also_at_the_end_of_the_file() {
        for (text, value) in [
            ("A='x'", "x"),
            ("A=\"x\"", "x"),
            ("A= \"x # y\" # z", "x # y"),
            ("A=\"\\t\\r\\n\\\"\\\\\\$\\x\"", "\t\r\n\"\\$\\x"),
            ("A='\\n'", "\\n"),
            ("A=\"it's\"", "it's"),
            ("A=x#y # z", "x#y"),
            ("A=#z", ""),
        ] {
            assert_eq!(parse(text), Ok(vec![("A".to_owned(), value.to_owned())]), "{text}");
        }
    }

    #[test]
    fn names_and_values_are_those_that_an_environment_can_hold() {
        assert_eq!(variables("a.b-C_1=x")[0].0, "a.b-C_1");
        for bad in ["A\u{e9}=1", "A/B=1", "A=x\0", "A='x\n\0'", "A=\"x\n\0\"", "export =1"] {
            assert_eq!(parse(bad), Err(1), "{bad:?}");
        }
    }
}
