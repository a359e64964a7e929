//! The program: the command line's verbs become exit codes.

fn main() -> std::process::ExitCode {
    rip_server::command_line(rip_server::Program::for_any_app())
}
