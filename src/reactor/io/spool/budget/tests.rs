//! The bounds that all spools share.

use super::*;
use crate::reactor::simulation::disk::{self, Disk};
use std::path::Path;

const MIB: u64 = 1024 * 1024;

fn budget(max_disk_bytes: u64) -> Rc<SpoolBudget> {
    disk::begin();
    SpoolBudget::new(std::env::temp_dir(), max_disk_bytes)
}

#[test]
fn trouble_is_told_once_and_again_after_it_was_well_for_a_while() {
    let mut trouble = Trouble::default();
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    assert_eq!(trouble.tell(at(0)), None);
    trouble.meet(|| "full".to_owned());
    trouble.meet(|| "fuller".to_owned());
    assert_eq!(trouble.tell(at(0)), Some(Notice::Trouble("full".to_owned())));
    trouble.meet(|| "full".to_owned());
    assert_eq!(trouble.tell(at(5)), None, "it was told");
    trouble.has_gone_well = true;
    assert_eq!(trouble.tell(at(14)), None, "a moment of room is no recovery");
    trouble.has_gone_well = true;
    assert_eq!(trouble.tell(at(15)), Some(Notice::IsWell));
    trouble.meet(|| "full again".to_owned());
    assert_eq!(trouble.tell(at(16)), Some(Notice::Trouble("full again".to_owned())));
}

#[test]
fn memory_is_taken_and_given_back_up_to_64_mib() {
    let budget = budget(MIB);
    assert_eq!(budget.memory_left() as u64, 64 * MIB);
    budget.take_memory(1000);
    budget.take_memory(24);
    budget.give_memory_back(1000);
    assert_eq!((budget.memory_left() as u64, budget.spooled().memory_bytes), (64 * MIB - 24, 24));
    budget.take_memory(64 * 1024 * 1024);
    assert_eq!(budget.memory_left(), 0);
}

#[test]
fn a_file_takes_bytes_up_to_the_bound_and_no_more_are_made_beyond_it() {
    let budget = budget(1000);
    let mut file = budget.open(7).expect("room");
    assert_eq!((file.start, file.bytes, file.is_memfd, budget.files()), (7, 0, false, 1));
    assert_eq!(budget.append(&mut file, &[1; 600]), Ok(()));
    assert_eq!(budget.append(&mut file, &[1; 401]), Err(NoRoom::Full));
    assert_eq!((file.bytes, budget.spooled().disk_bytes), (600, 600), "all of it, or nothing");
    assert_eq!(budget.append(&mut file, &[2; 400]), Ok(()));
    assert_eq!((file.bytes, budget.spooled().disk_bytes), (1000, 1000));
    budget.end_tick(Instant::now());
    assert!(matches!(budget.open(0), Err(NoRoom::Full)));
    budget.give_file_back(file);
    assert!(budget.has_leaving_files());
    budget.end_tick(Instant::now());
    assert_eq!((budget.has_leaving_files(), budget.files(), budget.spooled().disk_bytes), (false, 0, 0));
}

#[test]
fn memfds_take_bytes_up_to_a_bound_of_their_own() {
    let budget = budget(1000);
    let mut file = budget.open_in_memory(3).expect("room");
    assert_eq!((file.start, file.bytes, file.is_memfd, budget.files()), (3, 0, true, 1));
    let most = vec![0; 4 * 1024 * 1024];
    assert_eq!(budget.append(&mut file, &most[1..]), Ok(()), "--max-spool is for the disk");
    let mut other = budget.open_in_memory(0).expect("one byte is left");
    assert_eq!(budget.append(&mut other, &[1; 2]), Err(NoRoom::Full));
    assert_eq!(budget.append(&mut other, &[1]), Ok(()));
    assert!(matches!(budget.open_in_memory(0), Err(NoRoom::Full)));
    assert_eq!((budget.spooled().memfd_bytes, budget.spooled().disk_bytes), (4 * MIB, 0));
    budget.give_file_back(file);
    budget.end_tick(Instant::now());
    assert_eq!((budget.files(), budget.spooled().memfd_bytes), (1, 1));
}

#[test]
fn without_a_folder_a_file_is_in_memory() {
    let budget = SpoolBudget::new("/nonexistent".into(), 1000);
    assert!(budget.open(0).expect("memory").is_memfd);
}

#[test]
fn one_tick_makes_so_many_files_and_none_while_descriptors_lack() {
    let budget = budget(MIB);
    assert!(!budget.is_tick_over() && !budget.lacks_descriptors());
    budget.open(0).expect("the first one");
    assert!(budget.is_tick_over());
    assert!(matches!(budget.open(0), Err(NoRoom::TickIsOver)));
    budget.end_tick(Instant::now());
    disk::set(Disk::NoDescriptors);
    assert!(matches!(budget.open(0), Err(NoRoom::TickIsOver)));
    assert!(budget.lacks_descriptors() && budget.is_tick_over());
    budget.end_tick(Instant::now());
    assert!(budget.lacks_descriptors() && !budget.is_tick_over());
    disk::set(Disk::Full);
    assert!(matches!(budget.open(0), Err(NoRoom::Full)));
    assert!(!budget.lacks_descriptors(), "the disk is full, which is something else");
    budget.end_tick(Instant::now());
    disk::set(Disk::Works);
    budget.open(0).expect("room again");
    assert_eq!((budget.files(), budget.lacks_descriptors()), (2, false));
}

#[test]
fn small_files_are_closed_together_and_a_large_one_ends_the_row() {
    let budget = budget(100 * MIB);
    for bytes in [4 * MIB, 1, 4 * MIB + 1, 1, 1, 1] {
        let file = anonymous_file::open(Path::new("/tmp")).expect("a file").0;
        budget.files.set(budget.files() + 1);
        budget.disk_bytes.set(budget.disk_bytes.get() + bytes);
        budget.give_file_back(Segment { file, start: 0, bytes, is_memfd: false });
    }
    budget.close_leaving(4);
    assert_eq!((budget.files(), budget.spooled().disk_bytes), (3, 3));
    budget.close_leaving(2);
    assert_eq!((budget.files(), budget.has_leaving_files()), (1, true));
    budget.close_leaving(4);
    assert_eq!((budget.files(), budget.has_leaving_files()), (0, false));
}
