//! What workers leave behind: told to end, killed after a second, and let go after another.

use super::groups::Groups;
use super::*;
use crate::reactor::simulation::process::Offspring;

const LEADER: Pid = Pid::from_raw(1_000_001);

/// The leader has ended; its child lives, and takes notice of SIGTERM or not.
fn group(is_unresponsive: bool) {
    process::table(|table| {
        *table = process::Table::default();
        table.ended.push_back((LEADER.as_raw(), Exit::Code(0)));
        table.children.push(Offspring { group: LEADER.as_raw(), is_told: false, is_unresponsive });
    });
}

fn child() -> Offspring {
    process::table(|table| table.children[0])
}

/// The leader's number may be another's from now on.
fn is_released() -> bool {
    process::table(|table| table.ended.is_empty())
}

#[test]
fn a_leader_that_leaves_nobody_is_let_go_at_once() {
    group(false);
    process::table(|table| table.children.clear());
    let mut groups = Groups::new(true);
    assert!(!groups.end(LEADER, Instant::now()));
    assert!(groups.is_empty() && is_released() && !groups.holds(LEADER));
}

#[test]
fn who_is_left_has_a_second_then_is_killed_and_forgotten_after_another() {
    group(true);
    let now = Instant::now();
    let mut groups = Groups::new(true);
    assert!(groups.end(LEADER, now));
    assert!(child().is_told && child().is_unresponsive, "SIGTERM");
    assert!(!groups.is_empty() && groups.holds(LEADER) && !groups.holds(Pid::from_raw(2)));
    groups.look();
    assert!(groups.holds(LEADER), "somebody is left");
    assert_eq!(groups.next_deadline(), Some(now + ms(1000)));
    groups.expire(now + ms(999));
    assert!(child().is_unresponsive);
    groups.expire(now + ms(1000));
    assert!(!child().is_unresponsive, "SIGKILL");
    assert!(groups.holds(LEADER) && !is_released());
    assert_eq!(groups.next_deadline(), Some(now + ms(2000)));
    groups.expire(now + ms(1999));
    assert!(groups.holds(LEADER) && !is_released());
    groups.expire(now + ms(2000));
    assert!(groups.is_empty() && is_released() && groups.next_deadline().is_none());
}

#[test]
fn a_group_in_which_nobody_is_left_is_let_go() {
    group(false);
    let mut groups = Groups::new(true);
    assert!(groups.end(LEADER, Instant::now()));
    process::table(|table| table.children.clear());
    assert!(!is_released());
    groups.look();
    assert!(groups.is_empty() && is_released());
}

#[test]
fn where_orphans_are_not_seen_everybody_is_supposed_to_have_left_some() {
    group(true);
    process::table(|table| table.children.clear());
    let now = Instant::now();
    let mut groups = Groups::new(false);
    assert!(!groups.end(LEADER, now), "nothing is known of anybody");
    groups.look();
    assert!(groups.holds(LEADER) && !is_released());
    groups.expire(now + ms(1000));
    groups.expire(now + ms(2000));
    assert!(groups.is_empty() && is_released());
}

#[test]
fn at_the_end_all_are_killed() {
    group(true);
    let mut groups = Groups::new(true);
    groups.end(LEADER, Instant::now());
    groups.kill_all();
    assert!(groups.is_empty() && !child().is_unresponsive);
}
