//! New code, step by step: who waits for it, and for how long.

use super::requests::{OK, Scene};
use super::said;
use crate::process::DescriptorLimit;
use crate::reactor::simulation::rooms::{config, keep_log, logged};
use crate::reactor::start::fit_streams;
use std::rc::Rc;

#[test]
fn requests_wait_for_the_new_code_and_its_worker_gets_them() {
    let mut scene = Scene::new();
    let old = scene.lines[0].clone();
    scene.world.reactor.renew(false);
    scene.run();
    assert_eq!(scene.world.workers.len(), 2, "its successor is started");
    let client = scene.get("/one");
    assert_eq!((said(&client), said(&old)), (String::new(), String::new()), "the old code is asked no more");
    scene.join_now();
    assert!(scene.asked().starts_with("GET /one "));
    scene.answer(OK);
    assert!(said(&client).starts_with("HTTP/1.1 200 "));
}

#[test]
fn the_old_code_goes_on_where_a_loop_is_slowed_down() {
    let mut scene = Scene::new();
    let old = scene.lines[0].clone();
    scene.world.reactor.renew(true);
    scene.run();
    let _client = scene.get("/one");
    assert!(said(&old).starts_with("GET /one "));
}

#[test]
fn new_code_that_does_not_come_is_waited_for_no_longer_than_a_boot_may_take() {
    let mut scene = Scene::new();
    let old = scene.lines[0].clone();
    scene.world.reactor.renew(false);
    scene.run();
    let client = scene.get("/one");
    logged();
    scene.pass(1999);
    assert_eq!((said(&client), said(&old)), (String::new(), String::new()), "longer than others wait");
    assert!(!logged().contains("has not come"));
    scene.pass(1);
    assert!(logged().contains("the new code has not come within 2000 ms; the old one goes on"));
    assert!(said(&old).starts_with("GET /one "));
}

#[test]
fn nobody_waits_for_new_code_while_the_server_stops() {
    let mut scene = Scene::new();
    let old = scene.lines[0].clone();
    let client = scene.get("/one");
    assert!(said(&old).starts_with("GET /one "));
    scene.world.reactor.begin_stop(crate::reactor::stopping::StopCause::Command);
    scene.world.reactor.renew(false);
    old.borrow_mut().send(OK.as_bytes());
    scene.run();
    assert!(said(&client).starts_with("HTTP/1.1 200 "));
}

#[test]
fn streams_that_do_not_fit_into_the_descriptors_are_fewer() {
    keep_log();
    // 256 are for the app, and one for a request.
    for (hard, expected) in [(300, 43), (1257, 1000), (1256, 999)] {
        let mut config = Rc::into_inner(config("w:1 http:0 --max-streams=1000")).expect("nobody else has it");
        let limit = fit_streams(&mut config, DescriptorLimit { soft: 64, hard });
        assert_eq!((config.max_streams, limit.soft), (expected, hard));
        let log = logged();
        let is_told = log.contains(&format!("--max-streams=1000 is lowered to {expected}"));
        assert_eq!(is_told, expected < 1000, "{log}");
    }
}

#[test]
fn nobody_is_blamed_for_a_death_where_requests_share_a_worker() {
    assert!(!Scene::of("w:1 --quarantine=1").world.reactor.quarantine.is_off());
    assert!(Scene::of("w:1 --quarantine=1 c:2").world.reactor.quarantine.is_off());
    assert!(Scene::of("w:1 --quarantine=off").world.reactor.quarantine.is_off());
}
