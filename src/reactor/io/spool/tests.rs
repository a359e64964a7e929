//! Spools, against what was written to them.

mod histories;

use super::*;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Instant;

const DISK: u64 = 1 << 30;

fn end_ticks(budget: &SpoolBudget) {
    while budget.has_leaving_files() {
        budget.end_tick(Instant::now());
    }
    budget.end_tick(Instant::now());
}

fn read_back(spool: &mut Spool) -> Vec<u8> {
    let (mut near, mut far) = UnixStream::pair().expect("a pair");
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        far.read_to_end(&mut all).map(|_| all)
    });
    while spool.write_to(&mut near, 70_000).expect("written") != Written::All {}
    drop(near);
    reader.join().expect("no panic").expect("read")
}

#[test]
fn bytes_come_back_in_order_from_memory_file_and_memfd() {
    for folder in [std::env::temp_dir(), PathBuf::from("/nonexistent")] {
        let budget = SpoolBudget::new(folder, DISK);
        let mut spool = Spool::new(&budget);
        let all: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
        for part in all.chunks(50_000) {
            budget.end_tick(Instant::now());
            spool.push(part).expect("room");
        }
        assert_eq!(read_back(&mut spool), all);
        spool.rewind();
        assert_eq!(read_back(&mut spool), all);
        drop(spool);
        end_ticks(&budget);
        assert_eq!(budget.spooled(), Spooled { max_disk_bytes: DISK, ..Spooled::default() });
    }
}

#[test]
fn a_turn_writes_no_more_than_its_share() {
    let budget = SpoolBudget::new(std::env::temp_dir(), DISK);
    let mut spool = Spool::new(&budget);
    spool.push(&[b'x'; 10_000]).expect("room");
    let mut out = File::create("/dev/null").expect("a sink");
    assert_eq!(spool.write_to(&mut out, 4096), Ok(Written::BudgetSpent));
    assert!(spool.unread_bytes() < 10_000 && !spool.is_read());
    while spool.write_to(&mut out, 4096) != Ok(Written::All) {}
}

#[test]
fn files_of_a_large_spool_are_closed_one_by_one_and_a_reader_loses_nothing() {
    const BYTES: usize = 5 * 1024 * 1024 + 1;
    let budget = SpoolBudget::new(std::env::temp_dir(), DISK);
    let mut spool = Spool::new(&budget);
    for part in vec![b'x'; BYTES].chunks(512 * 1024) {
        spool.push(part).expect("room");
        budget.end_tick(Instant::now());
    }
    let (mut near, mut far) = UnixStream::pair().expect("a pair");
    near.set_nonblocking(true).expect("an option");
    assert_eq!(spool.write_to(&mut near, usize::MAX), Ok(Written::PeerIsFull));
    let sent_bytes = BYTES as u64 - spool.unread_bytes();
    drop((spool, near));
    let mut files = 0;
    while budget.has_leaving_files() {
        budget.end_tick(Instant::now());
        files += 1;
    }
    assert_eq!(files, 6, "five whole ones and the rest");
    let mut read = Vec::new();
    far.read_to_end(&mut read).expect("read");
    assert_eq!(read.len() as u64, sent_bytes);
    assert!(read.iter().all(|byte| *byte == b'x'), "its pages are lent to whoever reads");
}

#[test]
fn memfds_together_have_a_bound() {
    let budget = SpoolBudget::new(PathBuf::from("/nonexistent"), DISK);
    let mut spool = Spool::new(&budget);
    let part = vec![0; 1024 * 1024];
    let mut pushed = 0;
    while pushed < 100 && spool.push(&part).is_ok() {
        pushed += 1;
        budget.end_tick(Instant::now());
    }
    assert_eq!(pushed, 4);
    assert!(Spool::new(&budget).push(b"small ones fit into memory").is_ok());
}

#[test]
fn what_finds_no_room_waits_in_memory_and_settles_when_there_is_some() {
    // Two full segments of a mebibyte in this test's sizes.
    let budget = SpoolBudget::new(std::env::temp_dir(), 2 * 1024 * 1024);
    let mut other = Spool::new(&budget);
    other.push(&vec![b'y'; 1024 * 1024]).expect("room");
    budget.end_tick(Instant::now());
    let mut spool = Spool::new(&budget);
    let all: Vec<u8> = (0..1_500_000u32).map(|number| (number % 251) as u8).collect();
    let (first, second) = all.split_at(900_000);
    spool.push(first).expect("room");
    budget.end_tick(Instant::now());
    assert_eq!(spool.push(second), Err(Full), "a body that finds no room is told so");
    assert_eq!(spool.len(), 1024 * 1024);
    drop(spool);
    end_ticks(&budget);

    // An answer goes on in memory.
    let mut spool = Spool::new(&budget);
    spool.push_all(first);
    budget.end_tick(Instant::now());
    spool.push_all(second);
    assert_eq!((spool.tail_bytes(), budget.spooled().memfd_bytes), (0, 1_500_000 - 1024 * 1024));
    assert_eq!(read_back(&mut spool), all);

    // What finds no room there either waits, and settles when there is some.
    let mut third = Spool::new(&budget);
    let large = all.repeat(4);
    third.push_all(&large);
    assert!(third.is_at_bound() && third.tail_bytes() > 0);
    assert_eq!(third.settle(Need::Must), Settled::NoRoom);
    spool.forget_read();
    assert_eq!(budget.spooled().disk_bytes, 2 * 1024 * 1024, "files are closed at the end of a tick");
    drop((other, spool));
    for _ in 0..8 {
        end_ticks(&budget);
        third.settle(Need::Must);
    }
    assert_eq!(read_back(&mut third), large);
    third.forget_read();
    drop(third);
    end_ticks(&budget);
    assert_eq!((budget.spooled().disk_bytes, budget.files()), (0, 0));
}

#[test]
fn more_files_than_a_tick_may_make_are_made_in_the_next() {
    let budget = SpoolBudget::new(std::env::temp_dir(), DISK);
    let mut spools: Vec<Spool> = (0..3).map(|_| Spool::new(&budget)).collect();
    for spool in &mut spools {
        assert_eq!(spool.push(&[b'x'; 2000]), Ok(()));
    }
    let waiting = |spools: &[Spool]| spools.iter().filter(|spool| spool.tail_bytes() > 0).count();
    assert_eq!(waiting(&spools), 2);
    assert_eq!(spools[1].settle(Need::Must), Settled::TickIsOver);
    for left in [1, 0] {
        budget.end_tick(Instant::now());
        for spool in &mut spools {
            spool.settle(Need::Must);
        }
        assert_eq!(waiting(&spools), left);
    }
    for spool in &mut spools {
        assert_eq!(read_back(spool), [b'x'; 2000]);
    }
}
