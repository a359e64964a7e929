use super::*;

#[test]
fn a_process_that_was_taken_in_is_gone() {
    let mut child = std::process::Command::new("true").spawn().expect("a process");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    child.wait().expect("it is ours");
    assert_eq!(is_ending(pid), Some(true));
    assert_eq!(is_ending(Pid::this()), Some(false));
}
