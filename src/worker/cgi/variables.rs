//! The environment of a script (RFC 3875 §4.1).

use super::Cgi;
use crate::worker::request::{Request, percent_decoded};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// Variables of the worker protocol, which a script does not need.
pub(super) const PROTOCOL_VARIABLES: [&str; 15] = [
    "WORKER_ID",
    "SOCKET_PATH",
    "RIP_CONTROL_SOCKET",
    "RIP_INSTANCE",
    "RIP_VERSION",
    "RIP_APP_NAME",
    "RIP_APP_ENTRY",
    "RIP_SOCKET_PREFIX",
    "RIP_CONCURRENCY",
    "RIP_MAX_STREAMS",
    "RIP_HOT_RELOAD",
    "RIP_MAX_RELOADS",
    "RIP_LOG_JSON",
    "RIP_READ_TIMEOUT_MS",
    "RIP_CGI_PASS_AUTH",
];

/// The variables that describe the request. A script also gets the environment of its worker.
pub(super) fn variables(
    cgi: &Cgi,
    request: &Request<'_>,
    method: &str,
    target: &str,
) -> Vec<(OsString, OsString)> {
    let script = &cgi.script;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let path_info = percent_decoded(path.as_bytes());
    let host = request.header("host").unwrap_or("localhost");
    let is_https = request.header("x-forwarded-proto") == Some("https");
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (name, port)
        }
        _ => (host, if is_https { "443" } else { "80" }),
    };
    let client = request.client.map(|address| address.to_string()).unwrap_or_default();
    let is_redirected = target != request.target;
    let mut all: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &str, value: &[u8]| all.push((name.into(), OsString::from_vec(value.to_vec())));
    set("GATEWAY_INTERFACE", b"CGI/1.1");
    set("SERVER_PROTOCOL", b"HTTP/1.1");
    set("SERVER_SOFTWARE", concat!("rip-server/", env!("CARGO_PKG_VERSION")).as_bytes());
    set("SERVER_NAME", name.as_bytes());
    set("SERVER_PORT", port.as_bytes());
    set("REQUEST_METHOD", method.as_bytes());
    set("REQUEST_URI", target.as_bytes());
    set("SCRIPT_NAME", b"");
    set("SCRIPT_FILENAME", script.as_os_str().as_encoded_bytes());
    // `OPTIONS *` is about the whole server, and has no path.
    if path != "*" {
        let folder = script.parent().unwrap_or(Path::new("")).as_os_str().as_encoded_bytes();
        set("PATH_INFO", &path_info);
        set("PATH_TRANSLATED", &[folder, &path_info[..]].concat());
    }
    set("QUERY_STRING", query.as_bytes());
    set("REMOTE_ADDR", client.as_bytes());
    set("REMOTE_HOST", client.as_bytes());
    if is_https {
        set("HTTPS", b"on");
    }
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    for (name, value) in request.headers() {
        let name = match name.to_ascii_lowercase().as_str() {
            // A redirect is followed without the body.
            "content-length" | "content-type" if is_redirected => continue,
            "content-length" => "CONTENT_LENGTH".to_owned(),
            "content-type" => "CONTENT_TYPE".to_owned(),
            // A script does not need credentials (§4.1.18), except with `--cgi-pass-auth`.
            "authorization" if !cgi.passes_authorization => continue,
            // `Proxy` would become HTTP_PROXY, which programs use as their proxy.
            "proxy-authorization" | "proxy" | "connection" => continue,
            lower => format!("HTTP_{}", lower.to_ascii_uppercase().replace('-', "_")),
        };
        // Several fields of one name become one list (§4.1.18).
        match fields.iter_mut().find(|(known, _)| *known == name) {
            Some((known, values)) => {
                values.extend_from_slice(if known == "HTTP_COOKIE" { b"; " } else { b", " });
                values.extend_from_slice(value);
            }
            None => fields.push((name, value.to_vec())),
        }
    }
    for (name, value) in &fields {
        set(name, value);
    }
    all
}
