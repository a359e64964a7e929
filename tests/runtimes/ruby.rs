//! Ruby and Rack.

use super::checks::{App, Exceptions, app};
use super::fixture::ruby;

#[test]
fn ruby_serves_a_lambda() {
    app("rack", ruby(&["rack"])).check();
}

#[test]
fn ruby_serves_sinatra() {
    App { exceptions: Exceptions::Framework, ..app("sinatra", ruby(&["sinatra"])) }.check();
}
